// A stand-in for the driver: devices are host threads that run the device's own sources, memory is
// the host's. It knows the calls that dotcompute makes and no others. What it measures says nothing
// about a GPU.
//
// What waits for resident work on hardware, or may, waits here: a host that makes such a call while
// a grid stays for ever hangs, as it would there. Which calls those are, and who says so:
//
//     cuMemHostRegister               as cuMemHostAlloc                                    believed
//     cuMemHostAlloc, cuMemAlloc      "implicit synchronization", CUDA programming guide   believed
//     cuMemFreeHost                   the same                                             believed
//     cuModuleLoadData, -GetFunction  lazy loading may need the context to be idle, same   believed
//     cuModuleUnload                  the same                                             believed
//
// None was measured yet. All else that dotcompute calls is stream-ordered or asks without waiting.
// Memory, streams and launches as programs use them elsewhere are in compute.cpp.
//
// An image is a shared library that the stand-ins of `toolkit.cpp` made of sources; what is none
// stands for the handlers of `handlers.cpp`.
//
// What goes wrong is chosen by the environment, where a whole program is tested, or by the functions
// below: STANDIN_VERSION=11040 is the driver's version, STANDIN_FAIL="cuMemAlloc_v2=2" makes that call
// return 2. By the name of "later" are meant the launches of what is loaded after the first module.
#include "handlers.cpp"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
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
struct fate {
    std::atomic<int> code = 0;
    operator int() const { return code; }
    void operator=(int why) { code = why; }
} lost;
// What calls are to return, by their names.
std::map<std::string, int> &failing = *new std::map<std::string, int>;

int fails(const char *call) {
    std::lock_guard held(lock);
    if (auto found = failing.find(call); found != failing.end())
        return found->second;
    return 0;
}
#define STANDIN_CALL                                                                               \
    if (int code = fails(__func__))                                                                \
        return code;

// The code of a grid.
struct module {
    void (*seat)(const dc_grid *, uint32_t, uint32_t) = dc_twin_seat;
    void (*service)(const dc_grid *) = dc_twin_service;
    // How many threads call a handler; where they are a block, a seat is one, or a team of so many.
    uint32_t scope = DC_SCOPE_LANE, threads = 1, blocks = 1;
    // What its launches return, where they are refused.
    int refused = 0;
};

// Ends the calling thread of a grid whose context is lost, as hardware would.
struct ended {};
void look_at_fate() {
    if (lost != 0)
        throw ended{};
}
[[noreturn]] void trap() {
    lost = 719;
    throw ended{};
}

// Multiprocessors that follow each other: numbers alone, which no work is slower by. A block that runs
// somewhere, a thread here, has one of those that its stream is for: from the last on, so that a grid that
// is to be on the first and is on any shows.
constexpr unsigned MULTIPROCESSORS = 4;
struct range {
    unsigned first = 0, count = MULTIPROCESSORS;
};
thread_local range work_on;
thread_local unsigned multiprocessor = 0;
unsigned multiprocessor_here() { return multiprocessor; }
void be_block(range on, unsigned block) {
    multiprocessor = on.first + on.count - 1 - block % on.count;
}
// How many warps of grids each has.
std::atomic<int> warps_on[MULTIPROCESSORS];

// A stream: what it was given, one after the other, by a thread of its own.
struct stream {
    std::deque<std::function<void()>> work;
    bool busy = false;
    // Where its work runs, and whether a green context says so; the grids that it was given and that have
    // not ended.
    range on;
    bool green = false;
    int grids = 0;

    void run() {
        std::unique_lock held(lock);
        work_on = on;
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
stream *begin_stream(range on = {}, bool green = false) {
    auto *created = new stream;
    created->on = on, created->green = green;
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

void run_grid(long number, stream *in, const module *code, const dc_grid &grid,
              uint32_t shared_bytes, unsigned seats) {
    std::vector<std::thread> warps;
    for (uint32_t warp = 0; warp <= grid.seat_count * code->blocks; ++warp) {
        warps.emplace_back([&grid, code, warp, shared_bytes, seats, on = work_on] {
            be_block(on, warp / seats);
            ++warps_on[multiprocessor];
            dc_store_sys(DC_SYNC_NONE, dc_at<uint32_t>(grid.census) + warp, grid.epoch);
            try {
                if (warp == 0)
                    code->service(&grid);
                else
                    code->seat(&grid, warp - 1, shared_bytes);
            } catch (...) {
                // Its context is lost: `ended`, or what the threads of a seat make of that.
            }
            --warps_on[multiprocessor];
        });
    }
    for (auto &warp : warps)
        warp.join();
    std::lock_guard held(lock);
    resident.erase(number);
    --in->grids;
    changed.notify_all();
}

// How long an image is, it says itself.
size_t image_bytes(const void *image) {
    auto header = static_cast<const Elf64_Ehdr *>(image);
    return header->e_shoff + size_t(header->e_shentsize) * header->e_shnum;
}

// How much shared memory blocks of a function may have, by cuFuncSetAttribute.
std::map<void *, int> &shared_of = *new std::map<void *, int>;
int may_share(void *function) {
    std::lock_guard held(lock);
    auto found = shared_of.find(function);
    return found == shared_of.end() ? 48 * 1024 : found->second;
}

// Loads an image from memory; it stays loaded.
module *load(const void *image) {
    auto loaded = new module;
    static std::atomic<int> loads = 0;
    loaded->refused = loads++ == 0 ? 0 : fails("later");
    const bool is_library = std::memcmp(image, ELFMAG, SELFMAG) == 0;
    const size_t bytes = is_library ? image_bytes(image) : 0;
    if (bytes == 0)
        return loaded;
    const int file = memfd_create("standin-image", 0);
    if (file < 0 || write(file, image, bytes) != ssize_t(bytes))
        return nullptr;
    // It stays open: the loader takes a file of a name that it has seen for the one that it has loaded.
    const std::string path = "/proc/self/fd/" + std::to_string(file);
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
        return nullptr;
    loaded->seat = reinterpret_cast<decltype(loaded->seat)>(dlsym(library, "dc_twin_seat"));
    loaded->service =
        reinterpret_cast<decltype(loaded->service)>(dlsym(library, "dc_twin_service"));
    loaded->scope = *static_cast<uint32_t *>(dlsym(library, "standin_scope"));
    loaded->threads = *static_cast<uint32_t *>(dlsym(library, "standin_threads"));
    loaded->blocks = *static_cast<uint32_t *>(dlsym(library, "standin_blocks"));
    using hook = void (*)();
    *static_cast<hook *>(dlsym(library, "standin_fate")) = look_at_fate;
    *static_cast<hook *>(dlsym(library, "standin_trap_hook")) = trap;
    using number = unsigned (*)();
    *static_cast<number *>(dlsym(library, "standin_multiprocessor_hook")) = multiprocessor_here;
    return loaded;
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
void standin_lose(int code) { lost = code; }
// From now on this call returns this code; 0: what it should.
void standin_fail(const char *call, int code) {
    std::lock_guard held(lock);
    failing[call] = code;
}


int cuInit(unsigned) {
    // STANDIN_FAIL: call=code, separated by commas.
    const char *wanted = std::getenv("STANDIN_FAIL");
    for (std::string rest = wanted ? wanted : ""; !rest.empty();) {
        const std::string one = rest.substr(0, rest.find(','));
        rest.erase(0, one.size() + 1);
        const size_t equals = one.find('=');
        standin_fail(one.substr(0, equals).c_str(), std::atoi(one.c_str() + equals + 1));
    }
    STANDIN_CALL
    return 0;
}
int cuDriverGetVersion(int *version) {
    const char *wanted = std::getenv("STANDIN_VERSION");
    return *version = wanted ? std::atoi(wanted) : 13000, 0;
}
int cuGetErrorName(int code, const char **name) {
    static const std::map<int, const char *> names = {
        {1, "CUDA_ERROR_INVALID_VALUE"},
        {2, "CUDA_ERROR_OUT_OF_MEMORY"},
        {100, "CUDA_ERROR_NO_DEVICE"},
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
        return *value = MULTIPROCESSORS, 0;
    case 39: // threads of a multiprocessor
        return *value = 2048, 0;
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
    STANDIN_CALL
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
int cuMemHostRegister_v2(void *, size_t, unsigned flags) {
    STANDIN_CALL
    wait_for_resident_work();
    return flags == 3 ? lost : 1;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    STANDIN_CALL
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

// Green contexts: multiprocessors are divided by twos. Launches of grids in them can be refused by the
// name of "green", or by that of "behind" where a grid is before them.
struct resource {
    unsigned kind;
    unsigned char internal[88];
    range on; // the first is the driver's own knowledge, how many all may read
    unsigned char rest[44];
};
static_assert(sizeof(resource) == 144 && offsetof(resource, on) + offsetof(range, count) == 96);
int cuDeviceGetDevResource(int, resource *of, unsigned kind) {
    STANDIN_CALL
    return *of = {kind, {}, {}, {}}, kind == 1 ? lost : 1;
}
int cuDevSmResourceSplitByCount(resource *made, unsigned *groups, const resource *of,
                                resource *remaining, unsigned, unsigned count) {
    const unsigned wanted = (count + 1) / 2 * 2;
    if (wanted > of->on.count)
        return 914;
    *made = *remaining = *of;
    made->on.count = wanted;
    remaining->on = {of->on.first + wanted, of->on.count - wanted};
    return *groups = 1, lost;
}
int cuDevResourceGenerateDesc(void **made, const resource *of, unsigned) {
    return *made = new range(of->on), lost;
}
int cuGreenCtxCreate(void **made, void *description, int, unsigned flags) {
    STANDIN_CALL
    return *made = description, flags == 1 ? lost : 1;
}
int cuGreenCtxStreamCreate(void **made, void *context, unsigned flags, int) {
    STANDIN_CALL
    if (flags != 1)
        return 1;
    *made = begin_stream(*static_cast<range *>(context), true);
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
int cuStreamAddCallback(void *of, void (*callback)(void *, int, void *), void *data, unsigned) {
    STANDIN_CALL
    return lost != 0 ? int(lost) : give(of, [=] { callback(of, lost, data); });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *of) {
    return copy_in(of, to, from, bytes);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *of) {
    return give(of, [=] { std::memset(dc_at<void>(to), value, bytes); });
}

int cuModuleLoadData(void **module, const void *image) {
    STANDIN_CALL
    wait_for_resident_work();
    *module = load(image);
    return *module == nullptr ? 200 : lost;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    wait_for_resident_work();
    *function = twin_of(name);
    if (*function != nullptr)
        return lost;
    return *function = module, std::strcmp(name, "dc_resident") == 0 ? lost : 500;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int threads, size_t shared) {
    const int by_memory = shared == 0 ? 32 : int(227 * 1024 / shared);
    return *blocks = std::min(2048 / threads, by_memory), lost;
}
int cuLaunchCooperativeKernel(void *function, unsigned blocks, unsigned, unsigned, unsigned threads,
                              unsigned, unsigned, unsigned shared_bytes, void *of,
                              void **parameters) {
    STANDIN_CALL
    const dc_grid grid = *static_cast<const dc_grid *>(parameters[0]);
    auto code = static_cast<const module *>(function);
    if (code->refused != 0)
        return code->refused;
    stream *in = at(of);
    if (in == nullptr)
        return 400;
    for (const char *name : {"green", "behind"}) {
        const int code = in->green ? fails(name) : 0;
        std::lock_guard held(lock);
        if (code != 0 && (*name == 'g' || in->grids > 0))
            return code;
    }
    // More than there is room for at once.
    int room = 0;
    cuOccupancyMaxActiveBlocksPerMultiprocessor(&room, function, int(threads), shared_bytes);
    if (blocks > room * in->on.count)
        return 720;
    // A warp, a block or a team of them for each seat, and what serves; and no block to spare.
    const bool is_block = code->scope >= DC_SCOPE_BLOCK;
    const unsigned seats = is_block ? 1 : threads / 32;
    const unsigned wanted = grid.seat_count * code->blocks;
    if (blocks != (wanted + seats) / seats || threads > 1024 || threads % 32 != 0)
        return 1;
    if ((is_block && threads != code->threads) || int(shared_bytes) > may_share(function))
        return 1;
    long number;
    {
        std::lock_guard held(lock);
        number = ++launched;
        resident.insert(number);
        ++in->grids;
    }
    return give(of, [=] { run_grid(number, in, code, grid, shared_bytes / seats, seats); });
}

} // extern "C"
