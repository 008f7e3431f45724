"""The Kalman filter and its adjoint as GPU kernels: one sequence for each thread, its state in registers, time inside the kernel.

Every input is read once and every output written once. What is shared by all sequences is read by all threads at once.
Where the covariances differ between sequences, ``filter_*`` does everything in one pass. Where the batch shares them,
``covariance_*`` runs their recursion once, in one thread, and ``mean_*`` takes its gains to all sequences.

Forward, from P = 0 and f = 0, with P^- = P0 and p = h0 in place of the prediction at t = 0:

    P^- = A P A' + Q        S = C P^- C' + R = L L'        K = P^- C' S^-1        J = I - K C
    P = J P^- J' + K R K'   p = A f + a   e = z - C p   f = p + K e   v = S^-1 e   l = -(e'v + log det S + seen log 2 pi) / 2

Adjoint, backwards in time, from the saved f and P of the step before: the rest is computed anew. g weighs l, and G (symmetric)
and h are the gradients at P and f, with what comes from later steps:

    W = G J         S0 = (g v v' - g S^-1) / 2          V = v h' J           Z = V + S0 C
    dP^- = J' W + (C' Z + Z' C) / 2                     dR = S0 + K' G K - (K' h v' + v h' K) / 2
    dC = (2 S0 C - 2 K' W + V - K' h v' C) P^- - dz p'  dz = K' h - g v      dp = h - C' dz
    dA = 2 dP^- A P + dp f'     dQ = dP^-     da = dp   at the step before:  G = A' dP^- A,  h = A' dp

It is the adjoint in the guise of Joseph's form: nothing is subtracted that is almost equal. In the constant regime the sums over
the batch of h v', g v v' and g are all that the covariances need of the data.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_filter.core.triton_matrix import (
    add,
    cholesky,
    identity_less,
    inverse_of_square,
    lower_product,
    mirror,
    outer,
    product,
    read,
    scale,
    solve_lower,
    solve_upper,
    subtract,
    symmetric,
    transpose,
    twice_symmetric,
    write,
    zeros,
)

__all__ = ["covariance_backward", "covariance_forward", "filter_backward", "filter_forward", "mean_backward", "mean_forward"]

FLOATS = {"torch.float32": tl.float32, "torch.float64": tl.float64}
LOG_2PI = tl.constexpr(1.8378770664093453)


# The algebra of one step.


@triton.jit
def predicted_cov(A, Q, P0, P, b, t, T, N: tl.constexpr, DTYPE: tl.constexpr):
    """A (zeros at t = 0), A P and P^-."""
    transition = read(A, b, t, T, t > 0, N * N, DTYPE)
    noise = read(Q, b, t, T, t > 0, N * N, DTYPE)
    start = read(P0, b, t * 0, T, t < 1, N * N, DTYPE)
    AP = product(transition, P, N, N, N)
    return transition, AP, lower_product(symmetric(add(noise, start, N * N), N), AP, transpose(transition, N, N), N, N)


@triton.jit
def gain(P, C, R, N: tl.constexpr, M: tl.constexpr):
    """K, J, the factor of S, the inverses of its diagonal, and whether there is one."""
    CP = product(C, P, M, N, N)
    L, inverse, positive = cholesky(lower_product(R, CP, transpose(C, M, N), M, N), M)
    K = transpose(solve_upper(L, inverse, solve_lower(L, inverse, CP, M, N), M, N), M, N)
    return K, identity_less(product(K, C, N, M, N), N), L, inverse, positive


@triton.jit
def joseph(P, K, J, R, N: tl.constexpr, M: tl.constexpr):
    """J P J' + K R K'."""
    KRK = lower_product(zeros_like(P, N * N), product(K, R, N, M, M), transpose(K, N, M), N, M)
    return lower_product(KRK, product(J, P, N, N, N), transpose(J, N, N), N, N)


@triton.jit
def zeros_like(X, COUNT: tl.constexpr):
    """Zeros, as many and of the kind of X."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.zeros_like(X[k]),)
    return out


@triton.jit
def predicted_mean(transition, a, h0, f, b, t, T, N: tl.constexpr, DTYPE: tl.constexpr):
    """p; the transition and f are zero at t = 0."""
    offset = read(a, b, t, T, t > 0, N, DTYPE)
    start = read(h0, b, t * 0, T, t < 1, N, DTYPE)
    return add(product(transition, f, N, N, 1), add(offset, start, N), N)


@triton.jit
def log_density(e, L, inverse, seen, M: tl.constexpr):
    """log N(e; 0, L L') of the seen channels."""
    w = solve_lower(L, inverse, e, M, 1)
    total = seen * LOG_2PI
    for i in tl.static_range(M):
        total += w[i] * w[i] + 2.0 * tl.log(L[i * (i + 1) // 2 + i])
    return -0.5 * total


@triton.jit
def lifted(P, LIFT: tl.constexpr, N: tl.constexpr):
    """P with its variances raised by as much as rounding to the output could take."""
    out = ()
    for i in tl.static_range(N):
        for j in tl.static_range(N):
            out = out + ((P[i * N + j] * LIFT if i == j else P[i * N + j]),)
    return out


@triton.jit
def covariance_adjoint(G, hv, vv, g, K, J, L, inverse, C, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """dP^-, dR, and dC before it is multiplied with P^-, from G, h v', g v v' and g."""
    S0 = scale(0.5, subtract(vv, scale(g, inverse_of_square(L, inverse, M, BLOCK, DTYPE), M * M), M * M), M * M)
    Kt = transpose(K, N, M)
    W = product(G, J, N, N, N)
    V = product(transpose(hv, N, M), J, M, N, N)
    S0C = product(S0, C, M, M, N)
    CZ = product(transpose(C, M, N), add(V, S0C, M * N), N, M, N)
    at_predicted = lower_product(scale(0.5, twice_symmetric(CZ, N), N * N), transpose(J, N, N), W, N, N)
    Khv = product(Kt, hv, M, N, M)
    at_R = lower_product(subtract(S0, scale(0.5, twice_symmetric(Khv, M), M * M), M * M), product(Kt, G, M, N, N), K, M, N)
    at_C = subtract(scale(2.0, subtract(S0C, product(Kt, W, M, N, N), M * N), M * N), product(Khv, C, M, M, N), M * N)
    return at_predicted, at_R, add(at_C, V, M * N)


@triton.jit
def mean_adjoint(h, g, e, K, C, L, inverse, N: tl.constexpr, M: tl.constexpr):
    """v, dz, and what of dp does not arrive at the prediction itself."""
    v = solve_upper(L, inverse, solve_lower(L, inverse, e, M, 1), M, 1)
    at_z = subtract(product(transpose(K, N, M), h, M, N, 1), scale(g, v, M), M)
    return v, at_z, subtract(h, product(transpose(C, M, N), at_z, N, M, 1), N)


# Gradients of the model: kept for each sequence or summed over its block, at every step or over all of them.


@triton.jit
def put(field, b, t, T, inside, values, COUNT: tl.constexpr):
    """Write a gradient, where it is wanted: a row for each sequence, or their sum as the row of the block."""
    if field[0] is None:
        pass
    elif field[1] is None:
        row = tl.program_id(0).to(tl.int64)
        if field[2] is not None:
            row = row * T + t
        for k in tl.static_range(COUNT):
            tl.store(field[0] + row * COUNT + k, values[k] if len(values[k].shape) == 0 else tl.sum(values[k], 0))
    else:
        write(field, b, t, T, inside, values, COUNT)


@triton.jit
def collect(field, sums, b, t, T, inside, values, COUNT: tl.constexpr):
    """Write the gradient of this step, or add it to the sums over time."""
    if field[0] is not None:
        if field[2] is None:
            sums = add(sums, values, COUNT)
        else:
            put(field, b, t, T, inside, values, COUNT)
    return sums


@triton.jit
def finish(field, sums, b, T, inside, COUNT: tl.constexpr):
    """Write the sums over time."""
    if field[0] is not None:
        if field[2] is None:
            put(field, b, tl.program_id(0) * 0, T, inside, sums, COUNT)


@triton.jit
def arriving(field, b, t, T, on, COUNT: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """A gradient that arrives at an output, zeros where none does."""
    if field[0] is None:
        out = zeros(COUNT, BLOCK, DTYPE)
    else:
        out = read(field, b, t, T, on, COUNT, DTYPE)
    return out


@triton.jit
def chosen(first, X, Y, COUNT: tl.constexpr):
    """X where ``first``, else Y."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.where(first, X[k], Y[k]),)
    return out


# Covariances of each sequence: everything in one pass.


@triton.jit
def filter_forward(
    A,
    Q,
    C,
    R,
    P0,
    a,
    z,
    h0,
    seen,
    out_p,
    out_Pp,
    out_f,
    out_P,
    density,
    failed,
    batch,
    T,
    LIFT: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Filtered (and predicted, where there is a place for them) means and covariances, log-densities, the first step without a factor."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    f, P = zeros(N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE)
    first = tl.full((BLOCK,), 0, tl.int32) + T
    for step in range(T):
        t = tl.cast(step, tl.int32)
        transition, _, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        noise = symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M)
        K, J, L, inverse, positive = gain(Pp, observation, noise, N, M)
        first = tl.where(positive | (first < T), first, t)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        f = add(p, product(K, e, N, M, 1), N)
        P = joseph(Pp, K, J, noise, N, M)
        if out_p[0] is not None:
            write(out_p, b, t, T, inside, p, N)
            write(out_Pp, b, t, T, inside, lifted(Pp, LIFT, N), N * N)
        write(out_f, b, t, T, inside, f, N)
        write(out_P, b, t, T, inside, lifted(P, LIFT, N), N * N)
        write(density, b, t, T, inside, (log_density(e, L, inverse, read(seen, b, t, T, t >= 0, 1, DTYPE)[0], M),), 1)
    tl.store(failed + b, first, mask=inside)


@triton.jit
def filter_backward(
    A,
    Q,
    C,
    R,
    P0,
    a,
    z,
    h0,
    out_f,
    out_P,
    to_p,
    to_Pp,
    to_f,
    to_P,
    to_density,
    dA,
    dQ,
    dC,
    dR,
    dP0,
    da,
    dz,
    dh0,
    batch,
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of all inputs (those of shared ones summed over the block) from those that arrive at the outputs."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    h, G = zeros(N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE)
    sum_A, sum_Q, sum_C = zeros(N * N, BLOCK, DTYPE), zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE)
    sum_R, sum_a = zeros(M * M, BLOCK, DTYPE), zeros(N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        before = tl.maximum(t - 1, 0)
        f = read(out_f, b, before, T, t > 0, N, DTYPE)
        P = read(out_P, b, before, T, t > 0, N * N, DTYPE)
        transition, AP, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        noise = symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M)
        K, J, L, inverse, _ = gain(Pp, observation, noise, N, M)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        h = add(h, arriving(to_f, b, t, T, inside, N, BLOCK, DTYPE), N)
        G = add(G, symmetric(arriving(to_P, b, t, T, inside, N * N, BLOCK, DTYPE), N), N * N)
        g = arriving(to_density, b, t, T, inside, 1, BLOCK, DTYPE)[0]

        v, at_z, u = mean_adjoint(h, g, e, K, observation, L, inverse, N, M)
        vv = outer(scale(g, v, M), v, M, M)
        U, at_R, at_C = covariance_adjoint(G, outer(h, v, N, M), vv, g, K, J, L, inverse, observation, N, M, BLOCK, DTYPE)
        u = add(u, arriving(to_p, b, t, T, inside, N, BLOCK, DTYPE), N)
        U = add(U, symmetric(arriving(to_Pp, b, t, T, inside, N * N, BLOCK, DTYPE), N), N * N)
        write(dz, b, t, T, inside, at_z, M)
        sum_R = collect(dR, sum_R, b, t, T, inside, at_R, M * M)
        if dC[0] is not None:
            at_C = subtract(product(at_C, Pp, M, N, N), outer(at_z, p, M, N), M * N)
            sum_C = collect(dC, sum_C, b, t, T, inside, at_C, M * N)
        if dA[0] is not None:
            at_A = add(scale(2.0, product(U, AP, N, N, N), N * N), outer(u, f, N, N), N * N)
            sum_A = collect(dA, sum_A, b, t, T, inside, at_A, N * N)
        sum_a = collect(da, sum_a, b, t, T, inside, chosen(t > 0, u, zeros(N, BLOCK, DTYPE), N), N)
        sum_Q = collect(dQ, sum_Q, b, t, T, inside, chosen(t > 0, U, zeros(N * N, BLOCK, DTYPE), N * N), N * N)
        h = chosen(t > 0, product(transpose(transition, N, N), u, N, N, 1), u, N)
        UA = product(U, transition, N, N, N)
        G = chosen(t > 0, lower_product(zeros(N * N, BLOCK, DTYPE), transpose(transition, N, N), UA, N, N), U, N * N)
    write(dh0, b, tl.program_id(0) * 0, T, inside, h, N)
    finish(dP0, G, b, T, inside, N * N)
    finish(dA, sum_A, b, T, inside, N * N)
    finish(da, sum_a, b, T, inside, N)
    finish(dQ, sum_Q, b, T, inside, N * N)
    finish(dC, sum_C, b, T, inside, M * N)
    finish(dR, sum_R, b, T, inside, M * M)


# Covariances that the batch shares: their recursion in one thread, in float64, and the means of all sequences under its gains.


@triton.jit
def covariance_forward(A, Q, C, R, P0, out_Pp, out_P, out_K, out_L, failed, T, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr):
    """P^-, P, K, the lower triangle of L, and the first step without a factor."""
    P = zeros(N * N, 0, DTYPE)
    b = tl.program_id(0)
    first = b + T
    for step in range(T):
        t = tl.cast(step, tl.int32)
        _, _, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        noise = symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M)
        K, J, L, _, positive = gain(Pp, read(C, b, t, T, t >= 0, M * N, DTYPE), noise, N, M)
        first = tl.where(positive | (first < T), first, t)
        P = joseph(Pp, K, J, noise, N, M)
        write(out_Pp, b, t, T, t >= 0, Pp, N * N)
        write(out_P, b, t, T, t >= 0, P, N * N)
        write(out_K, b, t, T, t >= 0, K, N * M)
        write(out_L, b, t, T, t >= 0, L, M * (M + 1) // 2)
    tl.store(failed, first)


@triton.jit
def factor_of(L, b, t, T, M: tl.constexpr, DTYPE: tl.constexpr):
    """The factor of a step and the inverses of its diagonal."""
    factor = read(L, b, t, T, t >= 0, M * (M + 1) // 2, DTYPE)
    inverse = ()
    for i in tl.static_range(M):
        inverse = inverse + (1.0 / factor[i * (i + 1) // 2 + i],)
    return factor, inverse


@triton.jit
def mean_forward(
    A, C, a, z, h0, K, L, seen, out_p, out_f, density, batch, T, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr
):
    """Filtered (and predicted, where there is a place for them) means and log-densities."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    f = zeros(N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(step, tl.int32)
        p = predicted_mean(read(A, b, t, T, t > 0, N * N, DTYPE), a, h0, f, b, t, T, N, DTYPE)
        L_t, inverse = factor_of(L, b, t, T, M, DTYPE)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(read(C, b, t, T, t >= 0, M * N, DTYPE), p, M, N, 1), M)
        f = add(p, product(read(K, b, t, T, t >= 0, N * M, DTYPE), e, N, M, 1), N)
        if out_p[0] is not None:
            write(out_p, b, t, T, inside, p, N)
        write(out_f, b, t, T, inside, f, N)
        write(density, b, t, T, inside, (log_density(e, L_t, inverse, read(seen, b, t, T, t >= 0, 1, DTYPE)[0], M),), 1)


@triton.jit
def mean_backward(
    A,
    C,
    a,
    z,
    h0,
    K,
    L,
    out_f,
    to_p,
    to_f,
    to_density,
    dA,
    dC,
    da,
    dz,
    dh0,
    sum_hv,
    sum_vv,
    sum_g,
    batch,
    T,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of the data and of what moves it, and the sums over the block that the covariances need."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    b = tl.minimum(b, batch - 1)
    h, sum_a = zeros(N, BLOCK, DTYPE), zeros(N, BLOCK, DTYPE)
    sum_A, sum_C = zeros(N * N, BLOCK, DTYPE), zeros(M * N, BLOCK, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        transition = read(A, b, t, T, t > 0, N * N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        K_t = read(K, b, t, T, t >= 0, N * M, DTYPE)
        L_t, inverse = factor_of(L, b, t, T, M, DTYPE)
        f = read(out_f, b, tl.maximum(t - 1, 0), T, t > 0, N, DTYPE)
        p = predicted_mean(transition, a, h0, f, b, t, T, N, DTYPE)
        e = subtract(read(z, b, t, T, t >= 0, M, DTYPE), product(observation, p, M, N, 1), M)
        h = add(h, arriving(to_f, b, t, T, inside, N, BLOCK, DTYPE), N)
        g = arriving(to_density, b, t, T, inside, 1, BLOCK, DTYPE)[0]

        v, at_z, u = mean_adjoint(h, g, e, K_t, observation, L_t, inverse, N, M)
        put(sum_hv, b, t, T, inside, outer(h, v, N, M), N * M)
        put(sum_vv, b, t, T, inside, outer(scale(g, v, M), v, M, M), M * M)
        put(sum_g, b, t, T, inside, (g,), 1)
        u = add(u, arriving(to_p, b, t, T, inside, N, BLOCK, DTYPE), N)
        write(dz, b, t, T, inside, at_z, M)
        if dC[0] is not None:
            sum_C = collect(dC, sum_C, b, t, T, inside, scale(-1.0, outer(at_z, p, M, N), M * N), M * N)
        if dA[0] is not None:
            sum_A = collect(dA, sum_A, b, t, T, inside, outer(u, f, N, N), N * N)
        sum_a = collect(da, sum_a, b, t, T, inside, chosen(t > 0, u, zeros(N, BLOCK, DTYPE), N), N)
        h = chosen(t > 0, product(transpose(transition, N, N), u, N, N, 1), u, N)
    write(dh0, b, tl.program_id(0) * 0, T, inside, h, N)
    finish(dA, sum_A, b, T, inside, N * N)
    finish(da, sum_a, b, T, inside, N)
    finish(dC, sum_C, b, T, inside, M * N)


@triton.jit
def covariance_backward(
    A, Q, C, R, P0, out_P, sum_hv, sum_vv, sum_g, to_Pp, to_P, dA, dQ, dC, dR, dP0, T, N: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr
):
    """The gradients of the model from those that arrive at the covariances and from the sums over the batch of h v', g v v' and g."""
    b = tl.program_id(0)
    G = zeros(N * N, 0, DTYPE)
    sum_A, sum_Q, sum_C, sum_R = zeros(N * N, 0, DTYPE), zeros(N * N, 0, DTYPE), zeros(M * N, 0, DTYPE), zeros(M * M, 0, DTYPE)
    for step in range(T):
        t = tl.cast(T - 1 - step, tl.int32)
        P = read(out_P, b, tl.maximum(t - 1, 0), T, t > 0, N * N, DTYPE)
        transition, AP, Pp = predicted_cov(A, Q, P0, P, b, t, T, N, DTYPE)
        observation = read(C, b, t, T, t >= 0, M * N, DTYPE)
        K, J, L, inverse, _ = gain(Pp, observation, symmetric(read(R, b, t, T, t >= 0, M * M, DTYPE), M), N, M)
        G = add(G, symmetric(arriving(to_P, b, t, T, t >= 0, N * N, 0, DTYPE), N), N * N)
        hv = read(sum_hv, b, t, T, t >= 0, N * M, DTYPE)
        vv = symmetric(read(sum_vv, b, t, T, t >= 0, M * M, DTYPE), M)
        g = read(sum_g, b, t, T, t >= 0, 1, DTYPE)[0]

        U, at_R, at_C = covariance_adjoint(G, hv, vv, g, K, J, L, inverse, observation, N, M, 0, DTYPE)
        U = add(U, symmetric(arriving(to_Pp, b, t, T, t >= 0, N * N, 0, DTYPE), N), N * N)
        sum_R = collect(dR, sum_R, b, t, T, t >= 0, at_R, M * M)
        sum_C = collect(dC, sum_C, b, t, T, t >= 0, product(at_C, Pp, M, N, N), M * N)
        sum_A = collect(dA, sum_A, b, t, T, t >= 0, scale(2.0, product(U, AP, N, N, N), N * N), N * N)
        sum_Q = collect(dQ, sum_Q, b, t, T, t >= 0, chosen(t > 0, U, zeros(N * N, 0, DTYPE), N * N), N * N)
        UA = product(U, transition, N, N, N)
        G = chosen(t > 0, lower_product(zeros(N * N, 0, DTYPE), transpose(transition, N, N), UA, N, N), U, N * N)
    finish(dP0, G, b, T, b >= 0, N * N)
    finish(dA, sum_A, b, T, b >= 0, N * N)
    finish(dQ, sum_Q, b, T, b >= 0, N * N)
    finish(dC, sum_C, b, T, b >= 0, M * N)
    finish(dR, sum_R, b, T, b >= 0, M * M)
