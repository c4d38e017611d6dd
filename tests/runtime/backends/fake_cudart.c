/* What of the CUDA runtime the tests need: host memory as device memory, and errors to order. */
#include <stdlib.h>
#include <string.h>

static int devices = 1, integrated = 0, failure = 0, pending = 0;
static size_t live = 0, pinned = 0, events = 0, limit = (size_t)1 << 30;
static int last_kind = 0, stream_flags = 0, host_flags = 0;
static char stream_memory;

/* A captured stream keeps its copies and fills; more than there is room for voids the capture. */
enum { MOST = 4 };
typedef struct { char *into; const char *source; size_t into_pitch, source_pitch, width, rows; } Work;
typedef struct { Work work[MOST]; int count; } Graph;
static Graph *capturing = 0;
static size_t graphs = 0, executables = 0, launches = 0;

void fake_order(int device_count, int shares_memory, size_t memory)
{
    devices = device_count;
    integrated = shares_memory;
    limit = memory;
    failure = pending = 0;
}
void fake_fail(int code) { failure = code; }
size_t fake_count(int what)
{
    size_t counts[] = {live, pinned, events, (size_t)last_kind, (size_t)stream_flags,
                       (size_t)host_flags, (size_t)pending, graphs, executables, launches,
                       (size_t)(capturing != 0)};
    return counts[what];
}

const char *cudaGetErrorString(int code)
{
    return code == 100 ? "no CUDA-capable device is detected"
         : code == 35  ? "CUDA driver version is insufficient for CUDA runtime version"
         : code == 700 ? "an illegal memory access was encountered"
                       : "unknown error";
}
int cudaGetLastError(void) { int code = pending; pending = 0; return code; }
static int result(int code) { pending = code; return code; }

int cudaGetDeviceCount(int *count) { *count = devices; return result(devices ? 0 : failure); }
int cudaSetDevice(int device) { return result(device != 0); }
int cudaDeviceGetAttribute(int *value, int attribute, int device)
{
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? integrated : -1;
    return result(device);
}
int cudaGetDeviceProperties(char *properties, int device)
{
    memset(properties, 0x7f, 1200); /* the struct is longer than its name */
    strcpy(properties, "Orin");
    return result(device);
}
int cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = limit - live;
    *total = limit;
    return result(0);
}
static int reserve(void **address, size_t size, size_t *count)
{
    size_t rounded = (size + 255) / 256 * 256;
    if (!size || rounded > limit) { *address = 0; return result(size ? 2 : 0); }
    *address = aligned_alloc(256, rounded);
    *count += 1;
    return result(0);
}
int cudaMalloc(void **address, size_t size) { return reserve(address, size, &live); }
int cudaHostAlloc(void **address, size_t size, unsigned flags)
{
    host_flags = (int)flags;
    return reserve(address, size, &pinned);
}
int cudaFree(void *address) { live -= 1; free(address); return result(0); }
int cudaFreeHost(void *address) { pinned -= 1; free(address); return result(0); }
static int enqueue(Work work, void *stream)
{
    if (stream != &stream_memory) return result(400);
    if (capturing) {
        if (capturing->count++ < MOST) capturing->work[capturing->count - 1] = work;
        return result(0);
    }
    for (size_t row = 0; row < work.rows; row++) {
        char *into = work.into + row * work.into_pitch;
        if (work.source) memcpy(into, work.source + row * work.source_pitch, work.width);
        else memset(into, 0, work.width);
    }
    return result(0);
}
int cudaMemcpyAsync(void *into, const void *source, size_t size, int kind, void *stream)
{
    last_kind = kind;
    return enqueue((Work){into, source, size, size, size, 1}, stream);
}
int cudaMemcpy2DAsync(void *into, size_t into_pitch, const void *source, size_t source_pitch,
                      size_t width, size_t rows, int kind, void *stream)
{
    last_kind = kind;
    return enqueue((Work){into, source, into_pitch, source_pitch, width, rows}, stream);
}
int cudaMemset2DAsync(void *into, size_t pitch, int value, size_t width, size_t rows, void *stream)
{
    return value ? result(1) : enqueue((Work){into, 0, pitch, 0, width, rows}, stream);
}
int cudaStreamBeginCapture(void *stream, int mode)
{
    if (stream != &stream_memory || capturing || mode != 1) return result(400);
    capturing = calloc(1, sizeof *capturing);
    graphs += 1;
    return result(0);
}
int cudaStreamEndCapture(void *stream, void **graph)
{
    *graph = 0;
    if (stream != &stream_memory || !capturing) return result(400);
    Graph *ended = capturing;
    capturing = 0;
    if (ended->count > MOST) { free(ended); graphs -= 1; return result(901); }
    *graph = ended;
    return result(0);
}
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags)
{
    if (failure) return result(failure);
    *executable = malloc(sizeof(Graph));
    memcpy(*executable, graph, sizeof(Graph));
    executables += 1;
    return result(flags ? 1 : 0);
}
int cudaGraphLaunch(void *executable, void *stream)
{
    Graph *graph = executable;
    launches += 1;
    for (int i = 0; i < graph->count; i++) enqueue(graph->work[i], stream);
    return result(0);
}
int cudaGraphDestroy(void *graph) { graphs -= 1; free(graph); return result(0); }
int cudaGraphExecDestroy(void *graph) { executables -= 1; free(graph); return result(0); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags)
{
    *stream = &stream_memory;
    stream_flags = (int)flags;
    return result(0);
}
int cudaStreamSynchronize(void *stream) { return result(stream == &stream_memory ? failure : 400); }
int cudaEventCreate(void **event) { *event = malloc(1); events += 1; return result(0); }
int cudaEventRecord(void *event, void *stream) { return result(event && stream ? 0 : 400); }
int cudaEventSynchronize(void *event) { return result(event ? 0 : 400); }
int cudaEventElapsedTime(float *milliseconds, void *first, void *last)
{
    *milliseconds = 2.5f;
    return result(first && last ? 0 : 400);
}
