// Prefill attention for heads of 512 on Hopper: an experiment beside the Triton kernel, used by its benchmark alone.
//
// out[t, h] = sum over the keys n <= position(t) of softmax_n(scale q[t, h] . k[n, h / 8]) v[n, h / 8], bf16 in and
// out, float32 sums, P rounded to bf16. q [T, 16, 512], k and v [rows, 2, 512]; a request's keys are rows one after
// another, or scattered ones that `slots` lists.
//
// Tile: 64 rows (8 tokens x the 8 query heads of a KV head) by 64 keys, 8.4 MFLOP and 128 KiB of keys and values, which
// is 64 bytes a clock from the L2 at the matrix units' rate. Two tiles of neighbouring tokens form a cluster in which
// each block loads half of every piece for both (multicast): 32.
//
// Warpgroups, which pass work on in one direction only:
//   0  producers: one warp each for Q and K, for V's left half and for V's right half
//   1  scores: S = Q K^T of block i + 1 on the matrix units while it turns S of block i into P; owns maximum and sum
//   2, 3  values: O += P V, each 256 of the 512 columns (64 x 256 float32 sums are 128 registers a thread)
// A block of 64 keys takes 2048 clocks of the matrix units: 1024 for S (m64n64k16, both operands from shared memory,
// which that alone keeps busy), 1024 for P V (m64n128k16, 768 clocks of shared memory). The copies write for 1024 more.
//
// Shared memory, slots of 8 KiB, rows of 128 bytes in the 128-byte swizzle:
//   Q 8 slots [64 rows, 64 dims]; K ring of K_SLOTS [64 keys, 64 dims]; V rings of V_SLOTS for each half, [4 groups of
//   64 columns, 16 keys, 64 columns]; P 2 slots [64 rows, 64 keys]; then the rows' factors and the barriers.
// What bounds it, and what was tried next: README.md.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifndef CLUSTER
#define CLUSTER 2  // blocks that share their loads: 1 or 2
#endif
#ifndef K_SLOTS
#define K_SLOTS 10
#endif
#ifndef V_SLOTS
#define V_SLOTS 4
#endif
#ifndef LAZY  // a row's maximum moves only when it grows by more than this, in powers of two; 0: always
#define LAZY 8.0f
#endif
#ifndef REGS_PRODUCER
#define REGS_PRODUCER 32
#define REGS_SCORES 160
#define REGS_VALUES 160
#endif
#ifndef WATCHDOG
#define WATCHDOG 0  // 1: a wait that never ends traps instead of hanging the card
#endif

namespace {

constexpr int HEAD = 512, GROUP = 8, KV_HEADS = 2, Q_HEADS = GROUP * KV_HEADS;
constexpr int ROWS = 64, KEYS = 64, TOKENS = ROWS / GROUP;
constexpr int CHUNKS = HEAD / 64;  // of 64 dims, 128 bytes
constexpr int SLOT = 8192;
constexpr int THREADS = 512;

struct Smem {
    uint8_t q[CHUNKS][SLOT];
    uint8_t k[K_SLOTS][SLOT];
    uint8_t v[2][V_SLOTS][SLOT];
    uint8_t p[2][SLOT];
    float factor[2][ROWS];   // what O is multiplied by before this P's products are added
    float inverse[2][ROWS];  // 1 / sum, with a tile's last P
    uint64_t q_full[CHUNKS], q_empty[CHUNKS];
    uint64_t k_full[K_SLOTS], k_empty[K_SLOTS];
    uint64_t v_full[2][V_SLOTS], v_empty[2][V_SLOTS];
    uint64_t p_full[2], p_empty[2];
};
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

// The same barrier of a block of the cluster. With `.release.cluster` each arrival is a fence of the whole GPU, which
// took 60 % of the speed; nothing but reads of the tensor cores comes before it.
__device__ __forceinline__ void arrive_at(uint64_t& bar, uint32_t block) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(address(&bar)),
        "r"(block)
        : "memory");
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

// Where a ring stands: slot and parity of its current round.
template <int SLOTS>
struct Ring {
    uint32_t slot = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == SLOTS) slot = 0, parity ^= 1;
    }
};

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

// Operand in shared memory, 128-byte swizzle. Rows of 128 bytes along the sum's dim (Q, K, P): `group` unused. V, whose
// rows run along the columns: `group` is the distance of groups of 64 columns. Eight rows are 1024 bytes.
__device__ __forceinline__ uint64_t descriptor(const void* p, int group) {
    return static_cast<uint64_t>((address(p) & 0x3FFFF) >> 4) | static_cast<uint64_t>(group >> 4) << 16 |
           static_cast<uint64_t>(1024 >> 4) << 32 | 1ull << 62;
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

struct Params {
    // A cluster's tokens: row of the first one in q, how many, its request's key 0 in `slots`, position of the first one.
    const int4* work;
    const int* slots;  // row of k and v by key; null: keys are the rows
    __nv_bfloat16* out;
    int items;  // work x KV heads, those with the most keys first
    float scale_log2;
};

// The items of a cluster in turn. Every second round goes backwards, so that no cluster always gets the longer item.
struct Items {
    int round = 0, q_row, tokens, k_row, keys, position, head, blocks;

    // Items of this block from its cluster's next place on; false: no more.
    __device__ __forceinline__ bool next(const Params& p, uint32_t rank) {
        const int clusters = gridDim.x / CLUSTER, cluster = blockIdx.x / CLUSTER;
        const int item = round * clusters + (round & 1 ? clusters - 1 - cluster : cluster);
        round++;
        if (item >= p.items) return false;
        const int4 w = __ldg(p.work + item / KV_HEADS);
        head = item % KV_HEADS;
        keys = w.w + w.y;  // of the cluster's last token, so that its blocks go in step
        blocks = (keys + KEYS - 1) / KEYS;
        q_row = w.x + TOKENS * rank;
        tokens = w.y - static_cast<int>(TOKENS * rank);
        k_row = w.z;
        position = w.w + TOKENS * rank;
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

// A warp no longer reads a slot that all blocks of the cluster fill.
__device__ __forceinline__ void release(uint64_t& bar, int lane) {
#if CLUSTER == 1
    if (lane == 0) arrive(bar);
#else
    if (lane < CLUSTER) arrive_at(bar, lane);
#endif
}

// ---- producers ------------------------------------------------------------------------------------------------------

struct Maps {
    CUtensorMap q, k, k_row, v, v_row;  // boxes: a tile's rows; a block's half of a slot, and one key of it
};

// The row of a key of the item. In a pool keys behind its last one stand for that, so that no row is read that nobody
// sees; in rows of their own what follows are other requests' keys, or zeros behind the tensor's end.
__device__ __forceinline__ int row_of(const Params& p, const Items& it, int key) {
    return p.slots ? __ldg(p.slots + it.k_row + min(key, it.keys - 1)) : it.k_row + key;
}

// Whether the lanes' rows follow one another in groups of COUNT lanes.
template <int COUNT>
__device__ __forceinline__ bool is_run(int row, int lane) {
    return __all_sync(~0u, row == __shfl_sync(~0u, row, 0) + lane % COUNT);
}

// A warp loads its block's half of each slot: where the keys' rows follow one another with one copy, else row by row.
__device__ void produce_keys(Smem& sm, const Params& p, const Maps& maps, uint32_t rank, int lane) {
    constexpr int COUNT = KEYS / CLUSTER;
    Ring<K_SLOTS> ring;
    uint32_t tile = 0;
    for (Items it; it.next(p, rank); tile++) {
        int ahead = row_of(p, it, rank * COUNT + lane);
        for (int block = 0; block < it.blocks; block++) {
            const int row = ahead;
            ahead = row_of(p, it, (block + 1) * KEYS + rank * COUNT + lane);
            const bool run = is_run<32>(row, lane);
            for (int c = 0; c < CHUNKS; c++) {
                uint8_t* to = sm.k[ring.slot] + rank * (SLOT / CLUSTER);
                if (lane == 0) {
                    if (block == 0) {
                        wait(sm.q_empty[c], ~tile & 1);
                        expect(sm.q_full[c], SLOT);
                        copy(sm.q[c], maps.q, sm.q_full[c], it.head * GROUP, it.q_row, c);
                    }
                    wait(sm.k_empty[ring.slot], ring.parity ^ 1);
                    expect(sm.k_full[ring.slot], SLOT);
                    if (run) copy_to_all(to, maps.k, sm.k_full[ring.slot], row, c, it.head);
                }
                __syncwarp();
                if (!run) copy_to_all(to + lane * 128, maps.k_row, sm.k_full[ring.slot], row, c, it.head);
                ring.advance();
            }
        }
    }
}

__device__ void produce_values(Smem& sm, const Params& p, const Maps& maps, int half, uint32_t rank, int lane) {
    Ring<V_SLOTS> ring;
    const int group = half * 4 + rank * (4 / CLUSTER);  // of 64 columns; a lane's row-by-row copy: group + lane / 16
    for (Items it; it.next(p, rank);) {
        int ahead = row_of(p, it, lane % 16);
        for (int piece = 0; piece < it.blocks * (KEYS / 16); piece++) {
            const int row = ahead;
            ahead = row_of(p, it, (piece + 1) * 16 + lane % 16);
            const bool run = is_run<16>(row, lane);
            uint8_t* to = sm.v[half][ring.slot] + rank * (SLOT / CLUSTER);
            if (lane == 0) {
                wait(sm.v_empty[half][ring.slot], ring.parity ^ 1);
                expect(sm.v_full[half][ring.slot], SLOT);
                if (run) copy_to_all(to, maps.v, sm.v_full[half][ring.slot], row, group, it.head);
            }
            __syncwarp();
            if (!run)
                copy_to_all(to + lane * 128, maps.v_row, sm.v_full[half][ring.slot], row, group + lane / 16, it.head);
            ring.advance();
        }
    }
}

// ---- scores ---------------------------------------------------------------------------------------------------------

// One block of keys, as the scores' warpgroup sees it.
struct Block {
    int key, position;  // of its first key; of the tile's first token
    bool first, last;   // of its tile
};

struct Scores {
    Smem& sm;
    const Params& p;
    const uint32_t rank;
    const int warp, lane;
    Items it;
    int block = 0;
    uint32_t tile = 0;    // parity: of Q's current round
    Ring<K_SLOTS> filled, freed;
    Ring<2> out;
    bool frees_q;         // the block under way is its tile's last
    float top[2], sum[2];

    // Issues S of the stream's current block, in one group of products for each slot.
    __device__ __forceinline__ Block issue(float (&s)[32]) {
        const Block b{block * KEYS, it.position, block == 0, block + 1 == it.blocks};
        frees_q = b.last;
        pin(s);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            if (b.first) wait(sm.q_full[c], tile & 1);
            wait(sm.k_full[filled.slot], filled.parity);
            mma_fence();
            const uint64_t q = descriptor(sm.q[c], 0), k = descriptor(sm.k[filled.slot], 0);
#pragma unroll
            for (int i = 0; i < 4; i++) mma_scores(s, q + 2 * i, k + 2 * i, c + i);
            mma_commit();
            filled.advance();
        }
        return b;
    }

    // Waits for the slots from FROM up to TO of the block under way and frees them.
    template <int FROM, int TO>
    __device__ __forceinline__ void drain() {
        if constexpr (FROM < TO) {
            mma_wait<CHUNKS - 1 - FROM>();
            release(sm.k_empty[freed.slot], lane);
            if (frees_q && lane == 0) arrive(sm.q_empty[FROM]);
            freed.advance();
            drain<FROM + 1, TO>();
        }
    }

    __device__ __forceinline__ bool advance() {
        if (++block < it.blocks) return true;
        block = 0;
        tile++;
        return it.next(p, rank);
    }

    // S of block `b` to P; between its parts it frees slots of the block under way, if there is one.
    template <bool BUSY>
    __device__ __forceinline__ void softmax(float (&s)[32], const Block& b) {
        // Lane l has rows l / 4 (token 2 warp) and l / 4 + 8 (the next token), keys 8 g + 2 (l % 4) + {0, 1}.
        const int limit = b.position + 2 * warp - b.key;  // the first token's last key in this block
        if (limit < KEYS - 1) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int key = i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (key > limit + (i & 2 ? 1 : 0)) s[i] = -INFINITY;
            }
        }
        float factor[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (b.first) top[r] = -INFINITY, sum[r] = 0.0f;
            float m = fmaxf(s[2 * r], s[2 * r + 1]);
#pragma unroll
            for (int g = 1; g < 8; g++) m = fmaxf(m, fmaxf(s[4 * g + 2 * r], s[4 * g + 2 * r + 1]));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
            m *= p.scale_log2;
            if (!(m - top[r] > LAZY)) m = top[r];
            factor[r] = exp2f(top[r] - m);
            top[r] = m;
        }
        if constexpr (BUSY) drain<0, 2>();
        uint32_t packed[16];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = 0.0f;
#pragma unroll
            for (int g = 0; g < 8; g++) {
                float a, c;
                asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(a) : "f"(fmaf(s[4 * g + 2 * r], p.scale_log2, -top[r])));
                asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(c) : "f"(fmaf(s[4 * g + 2 * r + 1], p.scale_log2, -top[r])));
                total += a + c;
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed[2 * g + r]) : "f"(c), "f"(a));
            }
            sum[r] = fmaf(sum[r], factor[r], total);
        }
        if constexpr (BUSY) drain<2, 4>();
        wait(sm.p_empty[out.slot], out.parity ^ 1);
        const int row = 16 * warp + lane % 16;
#pragma unroll
        for (int g = 0; g < 8; g += 2) {
            const uint32_t to = address(sm.p[out.slot]) + row * 128 + (((g + lane / 16) ^ (row % 8)) << 4);
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(packed[2 * g]),
                         "r"(packed[2 * g + 1]), "r"(packed[2 * g + 2]), "r"(packed[2 * g + 3])
                         : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        if (lane % 4 == 0) {
            sm.factor[out.slot][16 * warp + lane / 4] = factor[0];
            sm.factor[out.slot][16 * warp + lane / 4 + 8] = factor[1];
        }
        if (b.last) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float total = sum[r] + __shfl_xor_sync(~0u, sum[r], 1);
                total += __shfl_xor_sync(~0u, total, 2);
                if (lane % 4 == 0) sm.inverse[out.slot][16 * warp + lane / 4 + 8 * r] = 1.0f / total;
            }
        }
        __syncwarp();
        if (lane == 0) arrive(sm.p_full[out.slot]);
        out.advance();
        if constexpr (BUSY) drain<4, CHUNKS>();
    }

    __device__ __forceinline__ void run() {
        float s0[32] = {}, s1[32] = {};
        if (!it.next(p, rank)) return;
        Block b0 = issue(s0), b1;
        drain<0, CHUNKS>();
        pin(s0);
        for (;;) {
            if (!advance()) {
                softmax<false>(s0, b0);
                return;
            }
            b1 = issue(s1);
            softmax<true>(s0, b0);
            pin(s1);
            if (!advance()) {
                softmax<false>(s1, b1);
                return;
            }
            b0 = issue(s0);
            softmax<true>(s1, b1);
            pin(s0);
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

__device__ __forceinline__ void store_tile(const Params& p, const Items& it, const float (&o)[128], const float (&inv)[2],
                                           int half, int warp, int lane) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int token = 2 * warp + r;
        if (token >= it.tokens) continue;
        __nv_bfloat16* row =
            p.out + (static_cast<int64_t>(it.q_row + token) * Q_HEADS + it.head * GROUP + lane / 4) * HEAD + half * 256;
#pragma unroll
        for (int g = 0; g < 32; g += 4) {
            uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float a = o[4 * (g + i) + 2 * r] * inv[r], b = o[4 * (g + i) + 2 * r + 1] * inv[r];
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x[i]) : "f"(b), "f"(a));
            }
            transpose(x, lane);
            *reinterpret_cast<uint4*>(row + 8 * g + lane % 4 * 8) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}

template <int FROM>
__device__ __forceinline__ void drain_values(Smem& sm, int half, Ring<V_SLOTS>& freed, int lane) {
    if constexpr (FROM < 4) {
        mma_wait<3 - FROM>();
        release(sm.v_empty[half][freed.slot], lane);
        freed.advance();
        drain_values<FROM + 1>(sm, half, freed, lane);
    }
}

__device__ __forceinline__ void run_values(Smem& sm, const Params& p, int half, uint32_t rank, int warp, int lane) {
    float o[128] = {};
    Ring<V_SLOTS> filled, freed;
    Ring<2> in;
    const int row = 16 * warp + lane / 4;
    for (Items it; it.next(p, rank);) {
        float inv[2];
        for (int block = 0; block < it.blocks; block++) {
            wait(sm.p_full[in.slot], in.parity);
            const float factor[2] = {sm.factor[in.slot][row], sm.factor[in.slot][row + 8]};
            inv[0] = sm.inverse[in.slot][row], inv[1] = sm.inverse[in.slot][row + 8];  // the last block's counts
            if (block > 0 && __any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < 128; i++) o[i] *= factor[i / 2 % 2];
            }
            pin(o);
            const uint64_t a = descriptor(sm.p[in.slot], 0);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                wait(sm.v_full[half][filled.slot], filled.parity);
                mma_fence();
                const uint64_t b = descriptor(sm.v[half][filled.slot], 16 * 128);
                mma_values<0>(o, a + 2 * i, b, block + i);
                mma_values<64>(o, a + 2 * i, b + (2 * 16 * 128 >> 4), block + i);
                mma_commit();
                filled.advance();
            }
            drain_values<0>(sm, half, freed, lane);
            pin(o);
            if (lane == 0) arrive(sm.p_empty[in.slot]);
            in.advance();
        }
        store_tile(p, it, o, inv, half, warp, lane);
    }
}

// ---- kernel ---------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(THREADS, 1)
    prefill_512(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) uint8_t raw[];
    Smem& sm = *reinterpret_cast<Smem*>(raw);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 0) {
        if (address(raw) % 1024) __trap();
        for (int i = 0; i < CHUNKS; i++) init(sm.q_full[i], 1), init(sm.q_empty[i], 4);
        for (int i = 0; i < K_SLOTS; i++) init(sm.k_full[i], 1), init(sm.k_empty[i], 4 * CLUSTER);
        for (int i = 0; i < 2 * V_SLOTS; i++) init(sm.v_full[0][i], 1), init(sm.v_empty[0][i], 4 * CLUSTER);
        for (int i = 0; i < 2; i++) init(sm.p_full[i], 4), init(sm.p_empty[i], 8);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    const int group = __shfl_sync(~0u, warp / 4, 0);  // the same for the whole warp, which the compiler can see
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGS_PRODUCER));
        if (warp == 0) produce_keys(sm, p, maps, rank, lane);
        else if (warp < 3) produce_values(sm, p, maps, warp - 1, rank, lane);
    } else if (group == 1) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGS_SCORES));
        Scores{sm, p, rank, warp % 4, lane}.run();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGS_VALUES));
        run_values(sm, p, group - 2, rank, warp % 4, lane);
    }
    cluster_sync();  // no block leaves while another may still write into it
}

// A tensor of rows of 512 bf16 as [d3, d2, d1, 64]: distances in bytes, slowest last.
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

int prefill_512_tokens() { return TOKENS * CLUSTER; }  // tokens of one row of `work`

// q and out [tokens, 16, 512], k and v [rows, 2, 512], all bf16 and contiguous; work [works, 4] and slots int32, the latter
// null where each request's keys are rows one after another. Returns a cudaError_t, or -1 where a tensor could not be
// described.
int prefill_512_launch(const void* q, const void* k, const void* v, void* out, const void* work, const void* slots,
                       int tokens, int rows, int works, float scale, int blocks, void* stream) {
    if (slots && CLUSTER == 1) return cudaErrorNotSupported;
    Maps maps;
    const uint64_t row = HEAD * 2, chunk = 128, all = rows;
    if (!make_map(&maps.q, q, {Q_HEADS, static_cast<uint64_t>(tokens), CHUNKS}, {row, row * Q_HEADS, chunk}, {GROUP, TOKENS, 1}))
        return -1;
    const auto describe = [&](CUtensorMap* map, const void* data, uint32_t keys, uint32_t chunks) {
        return make_map(map, data, {all, CHUNKS, KV_HEADS}, {row * KV_HEADS, chunk, row}, {keys, chunks, 1});
    };
    if (!describe(&maps.k, k, KEYS / CLUSTER, 1) || !describe(&maps.k_row, k, 1, 1) ||
        !describe(&maps.v, v, 16, 4 / CLUSTER) || !describe(&maps.v_row, v, 1, 1))
        return -1;
    const Params p{static_cast<const int4*>(work), static_cast<const int*>(slots), static_cast<__nv_bfloat16*>(out),
                   works * KV_HEADS, scale * 1.4426950408889634f};
    cudaError_t error = cudaFuncSetAttribute(prefill_512, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Smem));
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = CLUSTER, attribute.val.clusterDim.y = 1, attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks / CLUSTER * CLUSTER), config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = sizeof(Smem), config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute, config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, prefill_512, maps, p);
    return error != cudaSuccess ? error : cudaGetLastError();
}
}
