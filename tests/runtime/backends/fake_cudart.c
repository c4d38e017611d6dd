/* What of the CUDA runtime the tests need: host memory as device memory, and errors to order. */
#include <stdlib.h>
#include <string.h>

static int devices = 1, integrated = 0, failure = 0, pending = 0;
static size_t live = 0, pinned = 0, events = 0, limit = (size_t)1 << 30;
static int last_kind = 0, stream_flags = 0, host_flags = 0;
static char stream_memory;

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
                       (size_t)host_flags, (size_t)pending};
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
int cudaMemcpyAsync(void *into, const void *source, size_t size, int kind, void *stream)
{
    last_kind = kind;
    if (stream != &stream_memory) return result(400);
    memcpy(into, source, size);
    return result(0);
}
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
