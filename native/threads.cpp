// The threads that help: those of torch where its OpenMP library is found, as two sets of threads would take the cores from each other (those of
// OpenMP stay awake for a while after every loop of torch). Else our own, started once, kept for the next call, and awake for some microseconds
// after each, as a call is often shorter than the start of a thread.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "problem.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#define LDM_FORKS
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace ldm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kAwake = std::chrono::microseconds(100);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// Waits for a condition without sleeping; false where it did not come about in time.
template <class Condition>
bool soon(const Condition& holds) {
    const auto end = Clock::now() + kAwake;
    do {
        for (int k = 0; k < 64; ++k) {
            if (holds()) return true;
            pause();
        }
    } while (Clock::now() < end);
    return false;
}

struct Job {
    void (*work)(void*, Index);
    void* context;
    Index tasks;
    std::atomic<Index> next{0};

    void run() {
        for (Index task = next++; task < tasks; task = next++) work(context, task);
    }
};

class Crew {
  public:
    // One job at a time: a caller that finds the crew at work does its own alone.
    void help(Job& job, int helpers) {
        const std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (!mine.owns_lock()) return job.run();
        {
            const std::lock_guard<std::mutex> held(lock_);
            for (; size_ < helpers; ++size_) std::thread([this] { serve(); }).detach();
            job_ = &job, wanted_ = helpers;
            ++calls_;
            if (asleep_) wake_.notify_all();
        }
        job.run();
        std::unique_lock<std::mutex> held(lock_);
        job_ = nullptr;  // whoever has not begun by now need not
        held.unlock();
        if (soon([this] { return inside_.load() == 0; })) return;
        held.lock();
        done_.wait(held, [this] { return inside_.load() == 0; });
    }

  private:
    void serve() {
        for (long seen = 0;;) {
            if (!soon([&] { return calls_.load() != seen; })) {
                std::unique_lock<std::mutex> held(lock_);
                ++asleep_;
                wake_.wait(held, [&] { return calls_.load() != seen; });
                --asleep_;
            }
            seen = calls_.load();
            Job* job = nullptr;
            {
                const std::lock_guard<std::mutex> held(lock_);
                if (job_ && wanted_ > 0) job = job_, --wanted_, ++inside_;
            }
            if (!job) continue;
            job->run();
            const std::lock_guard<std::mutex> held(lock_);
            if (--inside_ == 0) done_.notify_one();
        }
    }

    std::mutex busy_, lock_;
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    int wanted_ = 0, size_ = 0, asleep_ = 0;
    std::atomic<int> inside_{0};
    std::atomic<long> calls_{0};
};

// Never destroyed, as its threads outlive the module.
std::atomic<Crew*> crew{nullptr};

Crew& present() {
    static std::mutex lock;
    Crew* now = crew.load();
    if (now) return *now;
    const std::lock_guard<std::mutex> held(lock);
    if (!crew.load()) crew = new Crew;
    return *crew.load();
}

// Runs a function on so many threads, the caller's among them.
using Team = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<bool> forked{false};

Team team() {
#if defined(LDM_FORKS)
    static const Team found = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return forked.load() ? nullptr : found;
#else
    return nullptr;
#endif
}

#if defined(LDM_FORKS)
// A process that was forked has none of the threads: it starts with a new crew, and OpenMP's would be waited for in vain.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { crew = nullptr, forked = true; });
#endif

}  // namespace

void parallel(Index tasks, int threads, void (*work)(void*, Index), void* context) {
    Job job{work, context, tasks};
    const int helpers = static_cast<int>(threads < tasks ? threads : tasks) - 1;
    if (helpers < 1) return job.run();
    // All of torch's threads even where there are fewer tasks: OpenMP dismisses those that a smaller team has no use for.
    if (const Team run = team()) return run([](void* all) { static_cast<Job*>(all)->run(); }, &job, static_cast<unsigned>(threads), 0);
    present().help(job, helpers);
}

}  // namespace ldm
