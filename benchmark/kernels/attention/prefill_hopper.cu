// Prefill attention of Gemma 4's layers on Hopper: an experiment beside the Triton kernel, used by its benchmark alone.
//
// out[t, h] = sum over the visible keys n of softmax_n(scale q[t, h] . k[n, h / GROUP]) v[n, h / GROUP], bf16 in and out,
// float32 sums, P rounded to bf16; the token at position i sees keys i - window < n <= i. q [T, 16, HEAD], k and v [rows,
// KV_HEADS, HEAD]: 2 KV heads of 512, or 8 of 256. A row below is a (token, query head of the KV head) pair.
//
// Warpgroups, which pass work on in one direction:
//   0     producers: a warp for Q and K, two for V
//   1, 2  scores: S = Q K^T of 64 rows and 64 keys, then P; only they see maxima
//   3, 4  values: O += P V, 64 x 256 float32 sums (128 registers a thread), and the rows' sums
// HEAD 512: a tile of 64 rows (8 tokens). The scores' warpgroups take the blocks of keys in turn, so that one's softmax runs
// beside the other's products and K is free as soon as it was read; each hands the maxima on to the other. The values'
// warpgroups take 256 columns each. HEAD 256: a tile of two groups of 64 rows (64 tokens), each with a warpgroup of scores
// and one of values.
// A block of keys takes 2048 clocks of the matrix units: 1024 for S (m64n64k16, which reads shared memory for as long), 1024
// for P V (m64n128k16; 768 of shared memory). Its copies into shared memory take 1024 more (HEAD 256: 512), and would ask
// the L2 for 64 bytes a clock: tiles of neighbouring tokens form a cluster in which each block loads half for both.
//
// Shared memory, in 8 KiB of rows of 128 bytes in the 128-byte swizzle: Q 8 x [64 rows, 64 dims]; K 8 x [64 keys, 64 dims];
// V 2 x [64 / V_KEYS pieces, 4 groups of 64 columns, V_KEYS keys, 64 columns]; P P_SLOTS x [64 rows, 64 keys]; then the
// rows' factors and sums and the barriers. K and V have room for one block (HEAD 256: two), and a piece is filled again as
// soon as it was read. Places are fixed, which keeps the loops short: together they must fit the instruction cache (about
// 32 KiB; an earlier version at twice that kept the next cache 70 % busy).
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#ifndef HEAD
#define HEAD 512  // or 256
#endif
#ifndef CLUSTER
#define CLUSTER (HEAD == 512 ? 2 : 1)  // blocks that share their loads: 1 or 2
#endif
#ifndef K_PIECES
#define K_PIECES (HEAD == 512 ? 4 : 2)  // of a block of keys, by dims
#endif
#ifndef V_KEYS
#define V_KEYS 16  // of a piece of values: 16 or 32
#endif
#ifndef P_SLOTS
#define P_SLOTS 4  // of P, all row groups together: how far the scores may be ahead of the values
#endif
#ifndef LAZY  // a row's maximum moves only when it grows by more than this, in powers of two; 0: always
#define LAZY 8.0f
#endif
#ifndef REGS_PRODUCER
#define REGS_PRODUCER 48
#define REGS_SCORES 72
#define REGS_VALUES 160
#endif
#ifndef WATCHDOG
#define WATCHDOG 0  // 1: a wait that never ends traps instead of hanging the card
#endif

namespace {

constexpr int Q_HEADS = 16, KV_HEADS = HEAD == 512 ? 2 : 8, GROUP = Q_HEADS / KV_HEADS;
constexpr int ROWS = 64, KEYS = 64;
constexpr int ROW_GROUPS = 512 / HEAD;                 // of ROWS rows in a tile
constexpr int GROUP_TOKENS = ROWS / GROUP, TOKENS = ROW_GROUPS * GROUP_TOKENS;
constexpr int STAGES = ROW_GROUPS;                     // blocks that K and V have room for
constexpr int CHUNKS = HEAD / 64;                      // of 64 dims, 128 bytes
constexpr int K_CHUNKS = CHUNKS / K_PIECES, V_PIECES = KEYS / V_KEYS;
constexpr int P_DEPTH = P_SLOTS / ROW_GROUPS;
constexpr int READERS = 4 * ROW_GROUPS;                // warps of a block that read a piece of K or V
constexpr float NO_SCORE = -1e30f;                     // a row's maximum before its first visible key; finite
constexpr int SLOT = 8192;
constexpr int THREADS = 640;

struct Smem {
    uint8_t q[ROW_GROUPS][CHUNKS][SLOT];
    uint8_t k[STAGES][CHUNKS][SLOT];
    uint8_t v[2][V_PIECES][4 * V_KEYS * 128];
    uint8_t p[P_SLOTS][SLOT];
    float factor[P_SLOTS][ROWS];  // what O and the sums are multiplied by before this P is added
    float sum[P_SLOTS][ROWS];     // of this P
    float top[2][ROWS];           // HEAD 512: the maxima up to each scores' warpgroup's last block, in powers of two
    uint64_t q_full[K_PIECES], q_empty[K_PIECES];
    uint64_t k_full[2][K_PIECES], k_empty[2][K_PIECES];  // of even and odd blocks
    uint64_t v_full[2][V_PIECES], v_empty[2][V_PIECES];  // of the columns' halves; HEAD 256: of even and odd blocks
    uint64_t p_full[P_SLOTS], p_empty[P_SLOTS];
    uint64_t top_full[2];
};
// Where the driver puts a block's dynamic shared memory, which the kernel checks: known to the compiler, descriptors are
// constants in uniform registers; else it keeps dozens in ordinary ones and moves four of them before each product.
constexpr uint32_t SMEM_BASE = 1024;
static_assert(sizeof(Smem) <= 227 * 1024, "shared memory of a block");

// ---- barriers -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void init(uint64_t& bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(&bar)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void expect(uint64_t& bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(&bar)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(uint64_t& bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(&bar)) : "memory");
}

__device__ __forceinline__ bool try_wait(uint64_t& bar, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(address(&bar)), "r"(parity)
        : "memory");
    return done;
}

__device__ __forceinline__ void wait(uint64_t& bar, uint32_t parity) {
#if WATCHDOG
    for (int spins = 0; !try_wait(bar, parity); spins++)
        if (spins > (1 << 20)) __trap();
#else
    while (!try_wait(bar, parity)) {
    }
#endif
}

// ---- bulk copies ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void copy(void* to, const CUtensorMap& map, uint64_t& bar, int c1, int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::
            "r"(address(to)),
        "l"(&map), "r"(address(&bar)), "r"(0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}

__device__ __forceinline__ void copy_to_all(void* to, const CUtensorMap& map, uint64_t& bar, int c1, int c2, int c3) {
#if CLUSTER == 1
    copy(to, map, bar, c1, c2, c3);
#else
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(address(to)),
        "l"(&map), "r"(address(&bar)), "r"(0), "r"(c1), "r"(c2), "r"(c3),
        "h"(static_cast<uint16_t>((1 << CLUSTER) - 1))
        : "memory");
#endif
}

// ---- matrix products ------------------------------------------------------------------------------------------------

// Operand at an offset of `Smem`, 128-byte swizzle. Rows of 128 bytes along the sum's dim (Q, K, P): `group` unused. V, whose
// rows run along the columns: `group` is the distance of groups of 64 columns. Eight rows are 1024 bytes.
__device__ __forceinline__ uint64_t descriptor(uint32_t offset, int group = 0) {
    return (SMEM_BASE + offset) >> 4 | static_cast<uint64_t>(group >> 4) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 |
           1ull << 62;
}

__device__ __forceinline__ void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void mma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

template <int N>
__device__ __forceinline__ void pin(float (&x)[N]) {  // keeps the compiler from moving accesses across this place
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

#define R8(x, i) \
    "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]), "+f"(x[i + 6]), "+f"(x[i + 7])
#define R32(x, i) R8(x, i), R8(x, i + 8), R8(x, i + 16), R8(x, i + 24)

__device__ __forceinline__ void mma_scores(float (&s)[32], uint64_t a, uint64_t b, int add) {  // 64 x 64 x 16
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, add, 1, 1, 0, 0;\n}"
        : R32(s, 0)
        : "l"(a), "l"(b), "r"(add));
}

// 64 x 128 x 16, into the 64 sums from FROM on. One instruction of 256 columns would do, but the assembler wants 154
// registers for it at the kernel's entry, where 512 threads have 128; P is read twice for that.
template <int FROM>
__device__ __forceinline__ void mma_values(float (&o)[128], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, add, 1, 1, 0, 1;\n}"
        : R32(o, FROM), R32(o, FROM + 32)
        : "l"(a), "l"(b), "r"(add));
}

// ---- work -----------------------------------------------------------------------------------------------------------

// The tokens of a cluster. Their keys are keys 0 to position + tokens of `slots` from k_row on, of `keys`.
struct alignas(32) Work {
    int q_row, tokens, position, head;  // row of the first token in q, how many, position of the first; the KV head
    int k_row, keys, unused[2];
};

struct Params {
    const Work* work;  // those with the most keys first
    const int* slots;  // row of k and v by key; null: keys are the rows
    __nv_bfloat16* out;
    int items, window;  // window in keys, the token's own included
    float scale_log2;
};

// The work of a cluster in turn, read one item ahead. Every second round goes backwards, so that no cluster always gets
// the longer item.
struct Items {
    const Params& p;
    const int rank;
    int round = 0, item, q_row, tokens, position, head, first_key, blocks;
    int4 ahead;
    int place, item_ahead;

    __device__ __forceinline__ Items(const Params& p, uint32_t rank) : p(p), rank(rank), place(blockIdx.x / CLUSTER) { load(); }

    __device__ __forceinline__ void load() {
        const int clusters = gridDim.x / CLUSTER;
        item_ahead = round++ * clusters + place;
        place = clusters - 1 - place;
        const Work* w = p.work + min(item_ahead, p.items - 1);
        asm volatile("ld.global.nc.v4.s32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(ahead.x), "=r"(ahead.y), "=r"(ahead.z), "=r"(ahead.w)
                     : "l"(w));
    }

    // The next item, from this block's first token on; false: no more.
    __device__ __forceinline__ bool next() {
        item = item_ahead;
        if (item >= p.items) return false;
        q_row = ahead.x + TOKENS * rank;
        tokens = ahead.y - TOKENS * rank;
        position = ahead.z + TOKENS * rank;
        head = ahead.w;
        // The blocks of keys that any token of the cluster sees: its blocks go in step.
        first_key = max(ahead.z - p.window + 1, 0) / KEYS * KEYS;
        blocks = (ahead.y + ahead.z - first_key + KEYS - 1) / KEYS;
        load();
        return true;
    }
};

__device__ __forceinline__ uint32_t cluster_rank() {
#if CLUSTER == 1
    return 0;
#else
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#endif
}

__device__ __forceinline__ void cluster_sync() {
#if CLUSTER == 1
    __syncthreads();
#else
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// Tells all blocks of the cluster that a warp no longer reads a piece that they fill together: lane i tells block i.
struct Release {
    const Smem& sm;
    const bool tells;
    uint32_t there;  // that block's `sm`

    __device__ __forceinline__ Release(const Smem& sm, int lane) : sm(sm), tells(lane < CLUSTER) {
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address(&sm)), "r"(tells ? lane : 0));
    }

    __device__ __forceinline__ void operator()(const uint64_t& bar) const {
        if (tells)
            asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there + (address(&bar) - address(&sm))) : "memory");
    }
};

// ---- producers ------------------------------------------------------------------------------------------------------

struct Maps {
    CUtensorMap q, k, k_row, v, v_row;  // boxes: a tile's rows; a block's half of a slot, and one key of it
};

// The rows of an item's keys from its first one on. In a pool the request's last key stands for those behind it, so that only its own rows are
// read; in rows of their own what follows are other requests' keys, or zeros behind the tensor's end.
struct Rows {
    const int* slots;
    int k_row, keys;

    __device__ __forceinline__ Rows(const Params& p, const Items& it)
        : slots(p.slots), k_row(p.work[it.item].k_row + it.first_key), keys(p.work[it.item].keys - it.first_key) {}

    __device__ __forceinline__ int operator()(int key) const {
        return slots ? __ldg(slots + k_row + min(key, keys - 1)) : k_row + key;
    }
};

// Whether COUNT rows follow one another; lane l has those from l on, 32 apart, or with less than 32 row l % COUNT.
template <int COUNT, int N>
__device__ __forceinline__ bool is_run(const int (&row)[N], int lane) {
    const int first = __shfl_sync(~0u, row[0], 0);
    bool run = true;
    for (int n = 0; n < N; n++) run &= row[n] == first + lane % COUNT + 32 * n;
    return __all_sync(~0u, run);
}

// A warp loads its block's half of each slot: where the keys' rows follow one another with one copy, else row by row.
__device__ void produce_keys(Smem& sm, const Params& p, const Maps& maps, uint32_t rank, int lane) {
    constexpr int COUNT = KEYS / CLUSTER, N = COUNT / 32;
    uint32_t tile = 0, count = 0;  // tiles and blocks so far
    int row[N], ahead[N];
    for (Items it(p, rank); it.next(); tile++) {
        const Rows rows(p, it);
        for (int n = 0; n < N; n++) ahead[n] = rows(rank * COUNT + lane + 32 * n);
        if (lane < 8)  // the next item's Q, to the L2
            asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(&maps.q), "r"(0),
                         "r"(it.ahead.w * GROUP), "r"(it.ahead.x + TOKENS * it.rank + lane / CHUNKS * GROUP_TOKENS),
                         "r"(lane % CHUNKS)
                         : "memory");
#pragma unroll 1
        for (int block = 0; block < it.blocks; block++, count++) {
            for (int n = 0; n < N; n++) {
                row[n] = ahead[n];
                ahead[n] = rows((block + 1) * KEYS + rank * COUNT + lane + 32 * n);
            }
            const bool run = is_run<COUNT>(row, lane);
#pragma unroll 1
            for (int piece = 0; piece < K_PIECES; piece++) {
                uint64_t& full = sm.k_full[count % 2][piece];
                if (lane == 0) {
                    if (block == 0) {
                        wait(sm.q_empty[piece], ~tile & 1);
                        expect(sm.q_full[piece], ROW_GROUPS * K_CHUNKS * SLOT);
                        for (int g = 0; g < ROW_GROUPS; g++)
                            for (int c = piece * K_CHUNKS; c < (piece + 1) * K_CHUNKS; c++)
                                copy(sm.q[g][c], maps.q, sm.q_full[piece], it.head * GROUP, it.q_row + g * GROUP_TOKENS, c);
                    }
                    if (count >= STAGES) wait(sm.k_empty[(count - STAGES) % 2][piece], (count - STAGES) / 2 & 1);
                    expect(full, K_CHUNKS * SLOT);
                }
                __syncwarp();
                for (int c = piece * K_CHUNKS; c < (piece + 1) * K_CHUNKS; c++) {
                    uint8_t* to = sm.k[count % STAGES][c] + rank * (SLOT / CLUSTER);
                    if (run) {
                        if (lane == 0) copy_to_all(to, maps.k, full, row[0], c, it.head);
                    } else {
                        for (int n = 0; n < N; n++)
                            copy_to_all(to + (lane + 32 * n) * 128, maps.k_row, full, row[n], c, it.head);
                    }
                }
            }
        }
    }
}

// `own`: the half of the columns, or with HEAD 256 the even or odd blocks.
__device__ void produce_values(Smem& sm, const Params& p, const Maps& maps, int own, uint32_t rank, int lane) {
    constexpr int GROUPS = 4 / CLUSTER;  // of 64 columns, this block's
    const int group = (HEAD == 512 ? own * 4 : 0) + rank * GROUPS;
    uint32_t count = 0;  // blocks before the tile
    for (Items it(p, rank); it.next(); count += it.blocks) {
        const Rows rows(p, it);
#pragma unroll 1
        for (int block = HEAD == 512 ? 0 : (count % 2) ^ own; block < it.blocks; block += STAGES) {
            const uint32_t parity = ~((count + block) / STAGES) & 1;
            int ahead = rows(block * KEYS + lane % V_KEYS);
#pragma unroll 1
            for (int piece = 0; piece < V_PIECES; piece++) {
                const int row[1] = {ahead};
                ahead = rows(block * KEYS + (piece + 1) * V_KEYS + lane % V_KEYS);
                const bool run = is_run<V_KEYS>(row, lane);
                uint8_t* to = sm.v[own][piece] + rank * (GROUPS * V_KEYS * 128);
                uint64_t& full = sm.v_full[own][piece];
                if (lane == 0) {
                    wait(sm.v_empty[own][piece], parity);
                    expect(full, sizeof(sm.v[own][piece]));
                    if (run) copy_to_all(to, maps.v, full, row[0], group, it.head);
                }
                __syncwarp();
                if (!run) {
                    for (int n = lane; n < GROUPS * V_KEYS; n += 32)
                        copy_to_all(to + n * 128, maps.v_row, full, row[0], group + n / V_KEYS, it.head);
                }
            }
        }
    }
}

// ---- scores ---------------------------------------------------------------------------------------------------------

struct Scores {
    Smem& sm;
    const float scale_log2;
    const int window;
    const int own, warp, lane;  // own: 0 or 1, of the blocks or of the row groups
    const Release release;
    Items it;
    float s[32] = {}, top[2];

    // S of a block: `count` blocks came before it, and `first` and `last` say which of this warpgroup's in its tile it is.
    __device__ __forceinline__ void products(uint32_t count, uint32_t tile, bool first, bool last) {
        const uint32_t q = offsetof(Smem, q) + (ROW_GROUPS == 2 ? own * sizeof(sm.q[0]) : 0);
        const uint32_t k = offsetof(Smem, k) + count % STAGES * sizeof(sm.k[0]);
        pin(s);
#pragma unroll
        for (int piece = 0; piece < K_PIECES; piece++) {
            if (first) wait(sm.q_full[piece], tile & 1);
            wait(sm.k_full[count % 2][piece], count / 2 & 1);
            mma_fence();
#pragma unroll
            for (int c = piece * K_CHUNKS; c < (piece + 1) * K_CHUNKS; c++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    mma_scores(s, descriptor(q + c * SLOT + 32 * i), descriptor(k + c * SLOT + 32 * i), c + i);
            mma_commit();
            if (piece > 0) {
                mma_wait<1>();
                free_piece(count, piece - 1, last);
            }
        }
        mma_wait<0>();
        free_piece(count, K_PIECES - 1, last);
        pin(s);
    }

    __device__ __forceinline__ void free_piece(uint32_t count, int piece, bool last) {
        release(sm.k_empty[count % 2][piece]);
        if (last && lane == 0) arrive(sm.q_empty[piece]);
    }

    // S to P. `position`: of the row group's first token, less the block's first key.
    __device__ __forceinline__ void softmax(uint32_t count, int position, bool first) {
        // Lane l has rows 16 warp + l / 4 and the one 8 below, keys 8 g + 2 (l % 4) + {0, 1}.
        const int row = 16 * warp + lane / 4;
        const int low = position + 16 * warp / GROUP, high = position + (16 * warp + 15) / GROUP;
        if (low < KEYS - 1 || high - window >= 0) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int key = i / 4 * 8 + lane % 4 * 2 + i % 2;
                const int seen = position + (row + (i & 2 ? 8 : 0)) / GROUP;  // the last key
                if (key > seen || key <= seen - window) s[i] = -INFINITY;
            }
        }
        float factor[2], sum[2] = {}, m[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            m[r] = fmaxf(s[2 * r], s[2 * r + 1]);
#pragma unroll
            for (int g = 1; g < 8; g++) m[r] = fmaxf(m[r], fmaxf(s[4 * g + 2 * r], s[4 * g + 2 * r + 1]));
            m[r] = fmaxf(m[r], __shfl_xor_sync(~0u, m[r], 1));
            m[r] = fmaxf(m[r], __shfl_xor_sync(~0u, m[r], 2)) * scale_log2;
        }
        if (HEAD == 512 && count > 0) wait(sm.top_full[own ^ 1], (count - 1) / 2 & 1);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float before = first ? NO_SCORE : HEAD == 512 ? sm.top[own ^ 1][row + 8 * r] : top[r];
            top[r] = m[r] - before > LAZY ? m[r] : before;
            factor[r] = exp2f(before - top[r]);
            if (HEAD == 512 && lane % 4 == 0) sm.top[own][row + 8 * r] = top[r];
        }
        if (HEAD == 512) {
            __syncwarp();
            if (lane == 0) arrive(sm.top_full[own]);
        }
        uint32_t packed[16];
#pragma unroll
        for (int g = 0; g < 8; g++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float a, b;
                asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(a) : "f"(fmaf(s[4 * g + 2 * r], scale_log2, -top[r])));
                asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(b) : "f"(fmaf(s[4 * g + 2 * r + 1], scale_log2, -top[r])));
                sum[r] += a + b;
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed[2 * g + r]) : "f"(b), "f"(a));
            }
        }
        const int slot = (ROW_GROUPS == 2 ? own * P_DEPTH : 0) + count % P_DEPTH;
        wait(sm.p_empty[slot], ~(count / P_DEPTH) & 1);
        const int to_row = 16 * warp + lane % 16;
        const uint32_t to = address(sm.p[slot]) + to_row * 128;
#pragma unroll
        for (int g = 0; g < 8; g += 2)
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                             to + (((g + lane / 16) ^ (to_row % 8)) << 4)),
                         "r"(packed[2 * g]), "r"(packed[2 * g + 1]), "r"(packed[2 * g + 2]), "r"(packed[2 * g + 3])
                         : "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
            sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
            if (lane % 4 == 0) sm.factor[slot][row + 8 * r] = factor[r], sm.sum[slot][row + 8 * r] = sum[r];
        }
        __syncwarp();
        if (lane == 0) arrive(sm.p_full[slot]);
    }

    __device__ __forceinline__ void run() {
        uint32_t count = 0;  // blocks before the tile
        for (uint32_t tile = 0; it.next(); tile++) {
            constexpr int STEP = HEAD == 512 ? 2 : 1;
            const int start = HEAD == 512 ? (count % 2) ^ own : 0;
            const int position = it.position - it.first_key + (ROW_GROUPS == 2 ? own * GROUP_TOKENS : 0);
#pragma unroll 1
            for (int block = start; block < it.blocks; block += STEP) {
                products(count + block, tile, block == start, block + STEP >= it.blocks);
                softmax(count + block, position - block * KEYS, block == 0);
            }
            if (start >= it.blocks) {  // a tile of one block, the other's
                for (int piece = 0; piece < K_PIECES; piece++) {
                    wait(sm.q_full[piece], tile & 1);
                    if (lane == 0) arrive(sm.q_empty[piece]);
                }
            }
            count += it.blocks;
        }
    }
};

// ---- values ---------------------------------------------------------------------------------------------------------

// Four lanes' four words each, lane i's words to everyone's word i.
__device__ __forceinline__ void transpose(uint32_t (&x)[4], int lane) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool high = lane & step;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t& low_word = x[step == 1 ? 2 * i : i];
            uint32_t& high_word = x[step == 1 ? 2 * i + 1 : i + 2];
            const uint32_t got = __shfl_xor_sync(~0u, high ? low_word : high_word, step);
            if (high) low_word = got;
            else high_word = got;
        }
    }
}

// `first_row`: of the warp, in its tile.
__device__ __forceinline__ void store_rows(const Params& p, const Items& it, const float (&o)[128], const float (&inv)[2],
                                           int first_row, int column, int lane) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first_row + lane / 4 + 8 * r, token = row / GROUP;
        __nv_bfloat16* to =
            p.out + (static_cast<int64_t>(it.q_row + token) * Q_HEADS + it.head * GROUP + row % GROUP) * HEAD + column;
#pragma unroll
        for (int g = 0; g < 32; g += 4) {
            uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float a = o[4 * (g + i) + 2 * r] * inv[r], b = o[4 * (g + i) + 2 * r + 1] * inv[r];
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x[i]) : "f"(b), "f"(a));
            }
            transpose(x, lane);
            if (token < it.tokens)
                *reinterpret_cast<uint4*>(to + 8 * g + lane % 4 * 8) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}

// `own`: the half of the columns, or with HEAD 256 the row group.
__device__ __forceinline__ void run_values(Smem& sm, const Params& p, int own, uint32_t rank, int warp, int lane) {
    float o[128] = {};
    uint32_t count = 0;
    const Release release(sm, lane);
    const int row = 16 * warp + lane / 4;
    for (Items it(p, rank); it.next();) {
        float sum[2] = {};
#pragma unroll 1
        for (int block = 0; block < it.blocks; block++, count++) {
            const int slot = (ROW_GROUPS == 2 ? own * P_DEPTH : 0) + count % P_DEPTH;
            const int from = HEAD == 512 ? own : count % 2;  // of V
            wait(sm.p_full[slot], count / P_DEPTH & 1);
            const float factor[2] = {sm.factor[slot][row], sm.factor[slot][row + 8]};
            for (int r = 0; r < 2; r++) sum[r] = fmaf(sum[r], factor[r], sm.sum[slot][row + 8 * r]);
            if (block > 0 && __any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < 128; i++) o[i] *= factor[i / 2 % 2];
            }
            pin(o);
            const uint32_t a = offsetof(Smem, p) + slot * SLOT, b = offsetof(Smem, v) + from * sizeof(sm.v[0]);
#pragma unroll
            for (int piece = 0; piece < V_PIECES; piece++) {
                wait(sm.v_full[from][piece], count / STAGES & 1);
                mma_fence();
#pragma unroll
                for (int i = 0; i < V_KEYS / 16; i++) {
                    const int step = piece * (V_KEYS / 16) + i;
                    const uint32_t keys = b + piece * 4 * V_KEYS * 128 + i * 16 * 128;
                    const uint64_t weights = descriptor(a + 32 * step);
                    mma_values<0>(o, weights, descriptor(keys, V_KEYS * 128), block + step);
                    mma_values<64>(o, weights, descriptor(keys + 2 * V_KEYS * 128, V_KEYS * 128), block + step);
                }
                mma_commit();
                if (piece > 0) {
                    mma_wait<1>();
                    release(sm.v_empty[from][piece - 1]);
                }
            }
            mma_wait<0>();
            release(sm.v_empty[from][V_PIECES - 1]);
            pin(o);
            if (lane == 0) arrive(sm.p_empty[slot]);
        }
        const float inv[2] = {1.0f / sum[0], 1.0f / sum[1]};
        const int first_row = (ROW_GROUPS == 2 ? own * ROWS : 0) + 16 * warp, column = HEAD == 512 ? own * 256 : 0;
        store_rows(p, it, o, inv, first_row, column, lane);
    }
}

// ---- kernel ---------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(THREADS, 1)
    prefill(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) uint8_t raw[];
    Smem& sm = *reinterpret_cast<Smem*>(raw);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 0) {
        if ((address(raw) & 0x3FFFF) != SMEM_BASE) __trap();
        for (int i = 0; i < K_PIECES; i++) {
            init(sm.q_full[i], 1), init(sm.q_empty[i], 8);
            for (int own = 0; own < 2; own++) init(sm.k_full[own][i], 1), init(sm.k_empty[own][i], READERS * CLUSTER);
        }
        for (int own = 0; own < 2; own++) init(sm.top_full[own], 4);
        for (int i = 0; i < 2 * V_PIECES; i++) init(sm.v_full[0][i], 1), init(sm.v_empty[0][i], READERS * CLUSTER);
        for (int i = 0; i < P_SLOTS; i++) init(sm.p_full[i], 4), init(sm.p_empty[i], 8 / ROW_GROUPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    const int group = __shfl_sync(~0u, warp / 4, 0);  // the same for the whole warp, which the compiler can see
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGS_PRODUCER));
        if (warp == 0) produce_keys(sm, p, maps, rank, lane);
        else if (warp < 3) produce_values(sm, p, maps, warp - 1, rank, lane);
    } else if (group <= 2) {  // fewer than the 96 at the start: `inc` would be an illegal instruction
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGS_SCORES));
        Scores{sm, p.scale_log2, p.window, group - 1, warp % 4, lane, Release(sm, lane), Items(p, rank)}.run();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGS_VALUES));
        run_values(sm, p, group - 3, rank, warp % 4, lane);
    }
    cluster_sync();  // no block leaves while another may still write into it
}

// A tensor of rows of HEAD bf16 as [d3, d2, d1, 64]: distances in bytes, slowest last.
bool make_map(CUtensorMap* map, const void* data, const uint64_t (&sizes)[3], const uint64_t (&distances)[3],
              const uint32_t (&box)[3]) {
    static decltype(&cuTensorMapEncodeTiled) encode = nullptr;
    if (!encode) {
        cudaDriverEntryPointQueryResult found;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", reinterpret_cast<void**>(&encode), 12000,
                                             cudaEnableDefault, &found) != cudaSuccess || !encode)
            return false;
    }
    const cuuint64_t size[4] = {64, sizes[0], sizes[1], sizes[2]};
    const cuuint64_t distance[3] = {distances[0], distances[1], distances[2]};
    const cuuint32_t boxes[4] = {64, box[0], box[1], box[2]}, steps[4] = {1, 1, 1, 1};
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), size, distance, boxes, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

extern "C" {

int prefill_tokens() { return TOKENS * CLUSTER; }  // tokens of one row of `work`

// q and out [tokens, 16, HEAD], k and v [rows, KV_HEADS, HEAD], all bf16 and contiguous; work [items, 8] (struct Work) and
// slots int32, the latter null where each request's keys are rows one after another; window in keys, 0: all. Returns a
// cudaError_t, or -1 where a tensor could not be described.
int prefill_launch(const void* q, const void* k, const void* v, void* out, const void* work, const void* slots, int tokens,
                   int rows, int items, int window, float scale, int blocks, void* stream) {
    Maps maps;
    const uint64_t row = HEAD * 2, chunk = 128, all = rows;
    if (!make_map(&maps.q, q, {Q_HEADS, static_cast<uint64_t>(tokens), CHUNKS}, {row, row * Q_HEADS, chunk}, {GROUP, GROUP_TOKENS, 1}))
        return -1;
    const auto describe = [&](CUtensorMap* map, const void* data, uint32_t keys, uint32_t chunks) {
        return make_map(map, data, {all, CHUNKS, KV_HEADS}, {row * KV_HEADS, chunk, row}, {keys, chunks, 1});
    };
    if (!describe(&maps.k, k, KEYS / CLUSTER, 1) || !describe(&maps.k_row, k, 1, 1) ||
        !describe(&maps.v, v, V_KEYS, 4 / CLUSTER) || !describe(&maps.v_row, v, 1, 1))
        return -1;
    const Params p{static_cast<const Work*>(work), static_cast<const int*>(slots), static_cast<__nv_bfloat16*>(out),
                   items, window ? window : 1 << 30, scale * 1.4426950408889634f};
    cudaError_t error = cudaFuncSetAttribute(prefill, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Smem));
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = CLUSTER, attribute.val.clusterDim.y = 1, attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks / CLUSTER * CLUSTER), config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = sizeof(Smem), config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute, config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, prefill, maps, p);
    return error != cudaSuccess ? error : cudaGetLastError();
}
}
