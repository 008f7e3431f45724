#include "tensors.hpp"

#include <nanobind/ndarray.h>

#include <cstdlib>

#include "memory.hpp"

namespace ldm {
namespace {

// The part of DLPack 1.3 that is used (https://dmlc.github.io/dlpack): data that another library describes, and who lets go of it.
struct Version {
    std::uint32_t major, minor;
};
struct Device {
    std::int32_t type, id;
};
struct Type {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};
struct Described {
    void* data;
    Device device;
    std::int32_t dims;
    Type type;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};
struct Managed {
    Version version;
    void* context;
    void (*deleter)(Managed*);
    std::uint64_t flags;
    Described tensor;
};
struct Exchange {
    Version version;
    void* older;
    void* allocate;
    void* managed_from_object;
    int (*object_from_managed)(Managed*, void** object);
    int (*describe)(void* object, Described*);
    void* stream;
};
constexpr std::int32_t kCpu = 1, kPinned = 3;  // pinned: on the CPU, where a GPU reads it
constexpr std::uint8_t kIntCode = 0, kFloatCode = 2, kBoolCode = 6;

// What is needed of torch, looked up once.
struct Torch {
    nb::object tensor, parameter, float32, float64, int64, boolean, from_numpy;
    const Exchange* exchange = nullptr;
    bool use = true;

    Torch() {
        const nb::object torch = nb::module_::import_("torch");
        tensor = torch.attr("Tensor"), parameter = torch.attr("nn").attr("Parameter");
        float32 = torch.attr("float32"), float64 = torch.attr("float64"), int64 = torch.attr("int64");
        boolean = torch.attr("bool"), from_numpy = torch.attr("from_numpy");
        const char* name = "__dlpack_c_exchange_api__";
        if (!nb::hasattr(tensor, name)) return;
        const auto* found = static_cast<const Exchange*>(PyCapsule_GetPointer(nb::object(tensor.attr(name)).ptr(), "dlpack_exchange_api"));
        if (!found) PyErr_Clear();
        if (found && found->version.major == 1 && found->describe && found->object_from_managed) exchange = found;
    }
};

// Never destroyed: Python may be gone by then.
Torch& torch() {
    static Torch* one = new Torch;
    return *one;
}

Kind kind_of_type(const Type& type) {
    if (type.lanes != 1) return Kind::other;
    if (type.code == kBoolCode) return Kind::boolean;
    if (type.code == kIntCode && type.bits == 64) return Kind::int64;
    return type.code != kFloatCode ? Kind::other : type.bits == 64 ? Kind::float64 : type.bits == 32 ? Kind::float32 : Kind::other;
}

bool described(nb::handle object, Tensor& x) {
    Described y{};
    if (torch().exchange->describe(object.ptr(), &y) != 0) {  // without memory, or on a device that DLPack does not know
        PyErr_Clear();
        return false;
    }
    if ((y.device.type != kCpu && y.device.type != kPinned) || y.dims > Tensor::kMost) return false;
    x.data = static_cast<char*>(y.data) + y.byte_offset, x.dims = y.dims, x.kind = kind_of_type(y.type);
    for (int k = 0; k < y.dims; ++k) x.shape[k] = y.shape[k], x.stride[k] = y.strides[k];
    return true;
}

bool asked(nb::handle object, Tensor& x) {
    const nb::object shape = object.attr("shape"), stride = object.attr("stride")(), dtype = object.attr("dtype");
    x.dims = static_cast<int>(nb::len(shape));
    if (x.dims > Tensor::kMost || !nb::cast<bool>(object.attr("is_cpu"))) return false;
    for (int k = 0; k < x.dims; ++k) x.shape[k] = nb::cast<Index>(shape[k]), x.stride[k] = nb::cast<Index>(stride[k]);
    const Torch& known = torch();
    x.kind = dtype.is(known.float64) ? Kind::float64 : dtype.is(known.float32) ? Kind::float32 : dtype.is(known.int64) ? Kind::int64
             : dtype.is(known.boolean) ? Kind::boolean : Kind::other;
    x.data = reinterpret_cast<void*>(nb::cast<std::intptr_t>(object.attr("data_ptr")()));
    return true;
}

// Large results get memory that is used again, as fresh pages would cost more than what fills them.
constexpr std::size_t kLarge = std::size_t{1} << 17;

struct Loan {
    void* block;
    std::size_t bytes;

    explicit Loan(std::size_t bytes)
        : block(bytes < kLarge ? ::operator new(bytes ? bytes : 1, std::align_val_t(64)) : take_memory(bytes)), bytes(bytes) {}
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    ~Loan() { bytes < kLarge ? ::operator delete(block, std::align_val_t(64)) : return_memory(block, bytes); }
};

struct Lent {
    Loan loan;
    std::int64_t shape[Tensor::kMost], stride[Tensor::kMost];
    Managed managed;
};

}  // namespace

Index Tensor::size() const {
    Index size = 1;
    for (int k = 0; k < dims; ++k) size *= shape[k];
    return size;
}

bool Tensor::contiguous() const {
    if (size() == 0) return true;
    Index expected = 1;
    for (int k = dims - 1; k >= 0; expected *= shape[k--]) {
        if (shape[k] != 1 && stride[k] != expected) return false;
    }
    return true;
}

bool look(nb::handle object, Tensor& x) {
    const Torch& known = torch();
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    if (type != known.tensor.ptr() && type != known.parameter.ptr()) return false;
    return known.exchange && known.use ? described(object, x) : asked(object, x);
}

nb::object fresh(Kind kind, std::initializer_list<Index> shape, void*& data) {
    return fresh(kind, shape.begin(), static_cast<int>(shape.size()), data);
}

nb::object fresh(Kind kind, const Index* shape, int dims, void*& data) {
    const std::uint8_t bits = kind == Kind::float32 ? 32 : 64;
    std::size_t bytes = bits / 8;
    for (int k = 0; k < dims; ++k) bytes *= static_cast<std::size_t>(shape[k]);
    auto* lent = new Lent{Loan(bytes), {}, {}, {}};
    data = lent->loan.block;
    Index step = 1;
    for (int k = dims - 1; k >= 0; step *= shape[k--]) lent->shape[k] = shape[k], lent->stride[k] = step;
    const auto let_go = [](void* p) noexcept { delete static_cast<Lent*>(p); };
    const Torch& known = torch();
    if (!(known.exchange && known.use)) {
        std::size_t sizes[Tensor::kMost];
        for (int k = 0; k < dims; ++k) sizes[k] = static_cast<std::size_t>(shape[k]);
        const nb::capsule owner(lent, let_go);
        const auto type = kind == Kind::float32 ? nb::dtype<float>() : nb::dtype<double>();
        return known.from_numpy(nb::ndarray<nb::numpy>(data, dims, sizes, owner, lent->stride, type));
    }
    Managed& m = lent->managed;
    m = {{1, 0}, lent, [](Managed* self) { delete static_cast<Lent*>(self->context); }, 0,
         {data, {kCpu, 0}, dims, {kFloatCode, bits, 1}, lent->shape, lent->stride, 0}};
    void* object = nullptr;
    if (known.exchange->object_from_managed(&m, &object) != 0) throw nb::python_error();
    return nb::steal(static_cast<PyObject*>(object));
}

bool use_exchange(bool wanted) {
    torch().use = wanted;
    return wanted && torch().exchange;
}

}  // namespace ldm
