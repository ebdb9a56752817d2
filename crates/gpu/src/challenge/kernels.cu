// The challenge on NVIDIA's GPUs, compiled at run time by NVRTC. The Rust side is cuda.rs.

typedef unsigned int u32;
typedef unsigned long long u64;

#define ROTL(x, n) __funnelshift_l((x), (x), (n))
#define ROTR(x, n) __funnelshift_r((x), (x), (n))

// ---- The factors: the ChaCha8 key stream. Each thread makes one block of 16 words. ----

#define QUARTER(a, b, c, d)                  \
    x[a] += x[b]; x[d] = ROTL(x[d] ^ x[a], 16); \
    x[c] += x[d]; x[b] = ROTL(x[b] ^ x[c], 12); \
    x[a] += x[b]; x[d] = ROTL(x[d] ^ x[a], 8);  \
    x[c] += x[d]; x[b] = ROTL(x[b] ^ x[c], 7);

extern "C" __global__ void factors(u32 *out, const u32 *key, u32 stream, u32 blocks)
{
    u32 block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= blocks) return;
    u32 start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, key[0], key[1], key[2], key[3],
                     key[4],     key[5],     key[6],     key[7],     block,  0,      stream, 0};
    u32 x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) x[i] = start[i];
#pragma unroll
    for (int round = 0; round < 4; round++) {
        QUARTER(0, 4, 8, 12) QUARTER(1, 5, 9, 13) QUARTER(2, 6, 10, 14) QUARTER(3, 7, 11, 15)
        QUARTER(0, 5, 10, 15) QUARTER(1, 6, 11, 12) QUARTER(2, 7, 8, 13) QUARTER(3, 4, 9, 14)
    }
    uint4 *to = (uint4 *)out + (u64)block * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
        to[i] = make_uint4(x[4 * i] + start[4 * i], x[4 * i + 1] + start[4 * i + 1],
                           x[4 * i + 2] + start[4 * i + 2], x[4 * i + 3] + start[4 * i + 3]);
}

// ---- The digest: SHA-256 of each KiB. Each thread hashes one. ----

__constant__ u32 K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#define SWAP(x) __byte_perm((x), 0, 0x0123)

__device__ void compress(u32 *h, u32 *w)
{
    u32 a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], k = h[7];
#pragma unroll
    for (int i = 0; i < 64; i++) {
        if (i >= 16) {
            u32 p = w[(i + 1) & 15], q = w[(i + 14) & 15];
            w[i & 15] += w[(i + 9) & 15] + (ROTR(p, 7) ^ ROTR(p, 18) ^ (p >> 3)) +
                         (ROTR(q, 17) ^ ROTR(q, 19) ^ (q >> 10));
        }
        u32 s = k + (ROTR(e, 6) ^ ROTR(e, 11) ^ ROTR(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i & 15];
        u32 t = (ROTR(a, 2) ^ ROTR(a, 13) ^ ROTR(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        k = g; g = f; f = e; e = d + s; d = c; c = b; b = a; a = s + t;
    }
    h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
}

extern "C" __global__ void __launch_bounds__(128) pieces(const u32 *in, u32 *out, u32 count)
{
    u32 piece = blockIdx.x * blockDim.x + threadIdx.x;
    if (piece >= count) return;
    const uint4 *from = (const uint4 *)in + (u64)piece * 64;
    u32 h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    u32 w[16];
#pragma unroll 1
    for (int block = 0; block < 16; block++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 v = from[block * 4 + i];
            w[4 * i] = SWAP(v.x); w[4 * i + 1] = SWAP(v.y); w[4 * i + 2] = SWAP(v.z); w[4 * i + 3] = SWAP(v.w);
        }
        compress(h, w);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) w[i] = 0;
    w[0] = 0x80000000;
    w[15] = 8192;  // the length in bits
    compress(h, w);
#pragma unroll
    for (int i = 0; i < 8; i++) out[(u64)piece * 8 + i] = SWAP(h[i]);
}

// ---- The product. A block of 256 threads makes a tile of 128 x 128. ----

#if __CUDA_ARCH__ >= 800 && !defined(PORTABLE)
#define TENSOR 1
#endif

#define TILE 128
#define DEPTH 16   // words of 4 bytes along k in one stage
#define STRIDE 20  // words from row to row in shared memory: eight rows then meet no bank twice

__device__ __forceinline__ void copy16(int *to, const int *from)
{
#ifdef TENSOR
    u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
    *(int4 *)to = *(const int4 *)from;
#endif
}

// The rows of A and the columns of B that this block needs, from word k on.
__device__ __forceinline__ void stage(int (*tile)[STRIDE], const int *a, const int *b, int words, int k)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int id = threadIdx.x + i * 256;
        int row = id >> 2, part = (id & 3) * 4;
        const int *from = row < TILE ? a + (u64)(blockIdx.y * TILE + row) * words
                                     : b + (u64)(blockIdx.x * TILE + row - TILE) * words;
        copy16(&tile[row][part], from + k + part);
    }
#ifdef TENSOR
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

#ifdef TENSOR
__device__ __forceinline__ void load4(u32 *to, const int *from)
{
    u32 address = (u32)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
}

// A warp makes 64 x 32 of the tile: 4 x 4 fragments of 16 x 8.
struct Sums { int c[4][4][4]; };

__device__ __forceinline__ void add(Sums &sums, const int (*tile)[STRIDE])
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int row = (warp >> 2) * 64, column = (warp & 3) * 32;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        u32 a[4][4], b[4][2];
#pragma unroll
        for (int i = 0; i < 4; i++) load4(a[i], &tile[row + i * 16 + (lane & 15)][k + (lane >> 4) * 4]);
#pragma unroll
        for (int j = 0; j < 4; j += 2)
            load4(b[j], &tile[TILE + column + j * 8 + (lane & 7) + (lane >> 4) * 8][k + ((lane >> 3) & 1) * 4]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                             : "+r"(sums.c[i][j][0]), "+r"(sums.c[i][j][1]), "+r"(sums.c[i][j][2]),
                               "+r"(sums.c[i][j][3])
                             : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
    }
}

__device__ __forceinline__ void store(const Sums &sums, int *c, int n)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int row = blockIdx.y * TILE + (warp >> 2) * 64 + (lane >> 2);
    int column = blockIdx.x * TILE + (warp & 3) * 32 + (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(int2 *)&c[(u64)(row + i * 16 + half * 8) * n + column + j * 8] =
                    make_int2(sums.c[i][j][half * 2], sums.c[i][j][half * 2 + 1]);
}
#else
// A thread makes 8 x 8 entries, 16 apart.
struct Sums { int c[8][8]; };

__device__ __forceinline__ int dot4(int a, int b, int sum)
{
#if __CUDA_ARCH__ >= 610
    return __dp4a(a, b, sum);
#else
    for (int i = 0; i < 32; i += 8) sum += (int)(signed char)(a >> i) * (int)(signed char)(b >> i);
    return sum;
#endif
}

__device__ __forceinline__ void add(Sums &sums, const int (*tile)[STRIDE])
{
    int x = threadIdx.x & 15, y = threadIdx.x >> 4;
#pragma unroll 4
    for (int k = 0; k < DEPTH; k++) {
        int a[8], b[8];
#pragma unroll
        for (int i = 0; i < 8; i++) { a[i] = tile[y + 16 * i][k]; b[i] = tile[TILE + x + 16 * i][k]; }
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sums.c[i][j] = dot4(a[i], b[j], sums.c[i][j]);
    }
}

__device__ __forceinline__ void store(const Sums &sums, int *c, int n)
{
    int x = blockIdx.x * TILE + (threadIdx.x & 15), y = blockIdx.y * TILE + (threadIdx.x >> 4);
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) c[(u64)(y + 16 * i) * n + x + 16 * j] = sums.c[i][j];
}
#endif

extern "C" __global__ void __launch_bounds__(256) product(const int *factors, int *c, int n)
{
    __shared__ __align__(16) int tiles[2][2 * TILE][STRIDE];
    int words = n / 4, stages = words / DEPTH;
    const int *a = factors, *b = factors + (u64)n * words;
    Sums sums = {};
    stage(tiles[0], a, b, words, 0);
    for (int s = 0; s < stages; s++) {
        if (s + 1 < stages) {
            stage(tiles[(s + 1) & 1], a, b, words, (s + 1) * DEPTH);
#ifdef TENSOR
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
        }
        __syncthreads();
        add(sums, tiles[s & 1]);
        __syncthreads();
    }
    store(sums, c, n);
}
