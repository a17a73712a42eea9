// A stand-in for the driver: devices are host threads that run the device's own sources, memory is
// the host's. It knows the calls that dotcompute makes and no others. What it measures says nothing
// about a GPU.
//
// What waits for resident work on hardware, or may, waits here: a host that makes such a call while
// a grid stays for ever hangs, as it would there. Which calls those are, and who says so:
//
//     cuMemHostAlloc, cuMemAlloc      "implicit synchronization", CUDA programming guide   believed
//     cuMemFreeHost                   the same                                             believed
//     cuModuleLoadData, -GetFunction  lazy loading may need the context to be idle, same   believed
//     cuModuleUnload                  the same                                             believed
//
// None was measured yet. All else that dotcompute calls is stream-ordered or asks without waiting.
// Memory, streams and launches as programs use them elsewhere are in compute.cpp.
#include "handlers.cpp"

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace {

// Never destroyed: streams' threads wait on them to the very end of the process, and to destroy what
// a thread waits on is to wait for that thread.
std::mutex &lock = *new std::mutex;
std::condition_variable &changed = *new std::condition_variable;
// The grids that were launched and have not ended, by their numbers; the number of the last one; and
// how often a call had to wait for one.
std::set<long> &resident = *new std::set<long>;
long launched = 0;
long waited = 0;
// The error that every call returns from now on, once a context is lost.
int lost = 0;

// A stream: what it was given, one after the other, by a thread of its own.
struct stream {
    std::deque<std::function<void()>> work;
    bool busy = false;

    void run() {
        std::unique_lock held(lock);
        for (;;) {
            changed.wait(held, [this] { return !work.empty(); });
            auto next = std::move(work.front());
            work.pop_front();
            busy = true;
            held.unlock();
            next();
            held.lock();
            busy = false;
            changed.notify_all();
        }
    }
    bool idle() const { return work.empty() && !busy; }
    int give(std::function<void()> next) {
        std::lock_guard held(lock);
        work.push_back(std::move(next));
        changed.notify_all();
        return lost;
    }
};

// The streams that live, and the two that every context has.
std::set<void *> &streams = *new std::set<void *>;
stream *begin_stream() {
    auto *created = new stream;
    std::thread([created] { created->run(); }).detach();
    return created;
}

// The stream of a handle; none if there is no such stream.
stream *at(void *handle) {
    static stream *const legacy = begin_stream(), *const per_thread = begin_stream();
    if (handle == nullptr || handle == reinterpret_cast<void *>(1))
        return legacy;
    if (handle == reinterpret_cast<void *>(2))
        return per_thread;
    std::lock_guard held(lock);
    return streams.count(handle) == 0 ? nullptr : static_cast<stream *>(handle);
}

// Gives work to the stream of a handle.
int give(void *handle, std::function<void()> work) {
    stream *of = at(handle);
    return of == nullptr ? 400 : of->give(std::move(work));
}

// Waits for all that was launched so far, and not for what is launched meanwhile.
void wait_for_resident_work() {
    std::unique_lock held(lock);
    const long last = launched;
    waited += !resident.empty();
    changed.wait(held, [last] { return resident.empty() || *resident.begin() > last; });
}

void run_grid(long number, dc_grid grid) {
    std::vector<std::thread> warps;
    for (uint32_t warp = 0; warp <= grid.seat_count; ++warp) {
        warps.emplace_back([&grid, warp] {
            dc_store_sys(DC_SYNC_NONE, dc_at<uint32_t>(grid.census) + warp, grid.epoch);
            if (warp == 0)
                dc_twin_service(&grid);
            else
                dc_twin_seat(&grid, warp - 1);
        });
    }
    for (auto &warp : warps)
        warp.join();
    std::lock_guard held(lock);
    resident.erase(number);
    changed.notify_all();
}

int allocate(void **place, size_t bytes) {
    wait_for_resident_work();
    *place = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *place == nullptr ? 2 : lost;
}

} // namespace

#include "compute.cpp"

extern "C" {

// For tests: how often a call waited for resident work; and to lose the context.
long standin_waited() {
    std::lock_guard held(lock);
    return waited;
}
void standin_lose(int code) {
    std::lock_guard held(lock);
    lost = code;
}

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuGetErrorName(int code, const char **name) {
    static const std::map<int, const char *> names = {
        {1, "CUDA_ERROR_INVALID_VALUE"},
        {2, "CUDA_ERROR_OUT_OF_MEMORY"},
        {200, "CUDA_ERROR_INVALID_IMAGE"},
        {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
        {400, "CUDA_ERROR_INVALID_HANDLE"},
        {500, "CUDA_ERROR_NOT_FOUND"},
        {600, "CUDA_ERROR_NOT_READY"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
        {719, "CUDA_ERROR_LAUNCH_FAILED"},
    };
    const auto known = names.find(code);
    *name = known == names.end() ? "CUDA_ERROR_UNKNOWN" : known->second;
    return 0;
}
int cuGetErrorString(int, const char **text) { return *text = "said by the stand-in", 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int bytes, int) {
    std::strncpy(name, "stand-in (host threads)", bytes);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 1: // threads of a block; and of its first two dimensions
    case 2:
    case 3:
        return *value = 1024, 0;
    case 4: // of the third
        return *value = 64, 0;
    case 5: // blocks
        return *value = 2147483647, 0;
    case 6:
    case 7:
        return *value = 65535, 0;
    case 8: // shared memory of a block
        return *value = 48 * 1024, 0;
    case 10: // threads of a warp
        return *value = 32, 0;
    case 16: // multiprocessors
        return *value = 4, 0;
    case 97: // shared memory of a block that asks for it
        return *value = 227 * 1024, 0;
    case 115: // memory pools
        return *value = 1, 0;
    case 75: // compute capability
        return *value = 9, 0;
    case 95: // cooperative launch
        return *value = 1, 0;
    default:
        return *value = 0, 0;
    }
}
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = size_t(1) << 30, 0; }
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &lock, lost; }
int cuCtxSetCurrent(void *) { return lost; }

int cuMemHostAlloc(void **place, size_t bytes, unsigned flags) {
    // Mapped and portable, and not write-combined.
    if (flags != 3)
        return 1;
    const int code = allocate(place, bytes);
    std::lock_guard held(lock);
    pinned.insert(*place);
    return code;
}
int cuMemHostGetDevicePointer_v2(uint64_t *address, void *place, unsigned) {
    return *address = reinterpret_cast<uint64_t>(place), lost;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    const int code = allocate(reinterpret_cast<void **>(address), bytes);
    std::lock_guard held(lock);
    pieces[*address] = {bytes, nullptr};
    return code;
}

int cuStreamCreate(void **made, unsigned flags) {
    // Only streams that wait for no other.
    if (flags != 1)
        return 1;
    *made = begin_stream();
    std::lock_guard held(lock);
    streams.insert(*made);
    return lost;
}
int cuStreamSynchronize(void *handle) {
    stream *of = at(handle);
    if (of == nullptr)
        return 400;
    std::unique_lock held(lock);
    changed.wait(held, [of] { return of->idle(); });
    return lost;
}
int cuStreamQuery(void *handle) {
    stream *of = at(handle);
    if (of == nullptr)
        return 400;
    std::lock_guard held(lock);
    return lost != 0 ? lost : of->idle() ? 0 : 600;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *of) {
    return copy_in(of, to, from, bytes);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *of) {
    return give(of, [=] { std::memset(dc_at<void>(to), value, bytes); });
}

int cuModuleLoadData(void **module, const void *) {
    wait_for_resident_work();
    return *module = &lock, lost;
}
int cuModuleGetFunction(void **function, void *, const char *name) {
    wait_for_resident_work();
    *function = twin_of(name);
    if (*function != nullptr)
        return lost;
    return *function = &lock, std::strcmp(name, "dc_resident") == 0 ? lost : 500;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int threads, size_t) {
    return *blocks = 2048 / threads, lost;
}
int cuLaunchCooperativeKernel(void *, unsigned blocks, unsigned, unsigned, unsigned threads,
                              unsigned, unsigned, unsigned, void *of, void **parameters) {
    const dc_grid grid = *static_cast<const dc_grid *>(parameters[0]);
    // A warp for the service and each seat, and no block to spare.
    const unsigned warps = threads / 32;
    if (blocks != (grid.seat_count + warps) / warps)
        return 1;
    long number;
    {
        std::lock_guard held(lock);
        number = ++launched;
        resident.insert(number);
    }
    return give(of, [number, grid] { run_grid(number, grid); });
}

} // extern "C"
