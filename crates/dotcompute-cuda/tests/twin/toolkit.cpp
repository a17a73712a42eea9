// Stand-ins for NVRTC and nvJitLink: they make of the sources that dotcompute gives them, with the
// host's compiler ($CXX), a shared library that the stand-in of the driver takes for an image. In
// place of the grid's translation unit, which is for a device, they compile its twin for host threads.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;

// As `twin.cpp`; besides, a pause looks whether the context is lost, and gives the core away: there
// are more warps than cores.
const char *const GRID = R"(
#include "atomics.cuh"
extern "C" {
void (*standin_fate)() = nullptr;
void (*standin_trap_hook)() = nullptr;
void standin_trap() { standin_trap_hook(); }
unsigned (*standin_multiprocessor_hook)() = nullptr;
unsigned standin_multiprocessor() { return standin_multiprocessor_hook(); }
}
static inline void standin_pause(uint32_t ns) {
    standin_fate();
    std::this_thread::sleep_for(std::chrono::microseconds(ns < 1000 ? 20 : 50));
}
#define dc_pause standin_pause
#include "calls.cuh"
#include "service.cuh"
extern "C" void dc_twin_seat(const dc_grid *grid, uint32_t number, uint32_t shared_bytes) {
    dc_stage stage = {};
    const dc_seat *seat = dc_at<const dc_seat>(grid->seats) + number / DC_SEAT_BLOCKS;
#if DC_IS_WIDE
    // Aligned to 16, as memory is that was just taken.
    std::vector<uint8_t> shared(shared_bytes + 1);
    dc_crew crew;
    stage.context.call.shared = shared.data();
    stage.context.call.crew = &crew;
#else
    (void)shared_bytes;
#endif
#if DC_IS_TEAM
    stage.context.call.block = number % DC_SEAT_BLOCKS;
    if (stage.context.call.block != 0)
        return dc_follow(*grid, seat, &stage.context);
#endif
    dc_sit(*grid, seat, &stage);
}

extern "C" void dc_twin_service(const dc_grid *grid) { dc_serve(*grid); }
// Of which scope it is.
extern "C" const uint32_t standin_scope = DC_SCOPE, standin_threads = DC_SEAT_THREADS,
                          standin_blocks = DC_SEAT_BLOCKS;
)";

std::string read(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}
void write(const fs::path &path, const std::string &text) {
    std::ofstream(path, std::ios::binary) << text;
}

// A folder that is gone at the end.
struct folder {
    fs::path path;
    folder() {
        std::string name = (fs::temp_directory_path() / "standin-XXXXXX").string();
        path = mkdtemp(name.data());
    }
    ~folder() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
};

// Runs the compiler in a folder; what it wrote, and whether it went well.
std::pair<std::string, bool> compiler(const fs::path &in, const std::string &arguments) {
    const char *named = std::getenv("CXX");
    const std::string command = "cd '" + in.string() + "' && " + (named ? named : "c++") + " " +
                                arguments + " >log 2>&1";
    const bool good = std::system(command.c_str()) == 0;
    return {read(in / "log"), good};
}

struct program {
    std::string text, name, log, code;
    std::vector<std::pair<std::string, std::string>> headers;
};
struct link {
    std::vector<std::pair<std::string, std::string>> parts;
    std::string log, image;
};

int give(const std::string &what, void *to) {
    std::memcpy(to, what.c_str(), what.size());
    return 0;
}

} // namespace

extern "C" {

int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, 0; }
const char *nvrtcGetErrorString(int code) {
    return code == 6 ? "NVRTC_ERROR_COMPILATION" : "said by the stand-in";
}
int nvrtcCreateProgram(void **made, const char *text, const char *name, int count,
                       const char *const *texts, const char *const *names) {
    auto *created = new program{text, name, "", "", {}};
    for (int header = 0; header < count; ++header)
        created->headers.emplace_back(names[header], texts[header]);
    return *made = created, 0;
}
int nvrtcDestroyProgram(void **of) {
    delete static_cast<program *>(*of);
    return *of = nullptr, 0;
}
int nvrtcCompileProgram(void *of, int count, const char *const *options) {
    auto &source = *static_cast<program *>(of);
    bool links = false;
    for (int option = 0; option < count; ++option)
        links |= std::strcmp(options[option], "-dlto") == 0;
    // A cubin of its own: its kernels have twins in compute.cpp.
    if (!links) {
        source.code.assign(128, '\0');
        source.code.replace(0, 5, "\x7f" "ELF\x02");
        return 0;
    }
    folder work;
    for (auto &[name, text] : source.headers)
        write(work.path / name, text);
    write(work.path / source.name, source.name == "resident.cu" ? GRID : source.text);
    std::string arguments = "-std=c++20 -O1 -fPIC -fno-strict-aliasing -w -I. -c -o code "
                            "-DDC_DEVICE_TWIN -D__device__= -D__trap=standin_trap ";
    if (source.name != "resident.cu")
        arguments += "-include standin.h ";
    write(work.path / "standin.h", "extern \"C\" void standin_trap();\n"
                                        "extern \"C\" unsigned standin_multiprocessor();\n");
    for (int option = 0; option < count; ++option)
        if (std::strncmp(options[option], "-D", 2) == 0)
            arguments += std::string(options[option]) + " ";
    auto [log, good] = compiler(work.path, arguments + "-x c++ " + source.name);
    source.log = log;
    source.code = read(work.path / "code");
    return good ? 0 : 6;
}
int nvrtcGetProgramLogSize(void *of, size_t *bytes) {
    return *bytes = static_cast<program *>(of)->log.size() + 1, 0;
}
int nvrtcGetProgramLog(void *of, char *to) {
    std::strcpy(to, static_cast<program *>(of)->log.c_str());
    return 0;
}
int nvrtcGetCUBINSize(void *of, size_t *bytes) {
    return *bytes = static_cast<program *>(of)->code.size(), 0;
}
int nvrtcGetCUBIN(void *of, char *to) { return give(static_cast<program *>(of)->code, to); }
int nvrtcGetLTOIRSize(void *of, size_t *bytes) {
    return *bytes = static_cast<program *>(of)->code.size(), 0;
}
int nvrtcGetLTOIR(void *of, char *to) { return give(static_cast<program *>(of)->code, to); }

int nvJitLinkVersion(unsigned *major, unsigned *minor) { return *major = 13, *minor = 0, 0; }
int nvJitLinkCreate(void **made, unsigned, const char *const *) { return *made = new link, 0; }
int nvJitLinkDestroy(void **of) {
    delete static_cast<link *>(*of);
    return *of = nullptr, 0;
}
int nvJitLinkAddData(void *of, int, const void *bytes, size_t count, const char *name) {
    static_cast<link *>(of)->parts.emplace_back(
        name, std::string(static_cast<const char *>(bytes), count));
    return 0;
}
int nvJitLinkComplete(void *of) {
    auto &linked = *static_cast<link *>(of);
    folder work;
    std::string arguments = "-shared -Wl,-z,defs -Wl,-Bsymbolic -pthread -o image";
    for (auto &[name, bytes] : linked.parts) {
        write(work.path / (name + ".o"), bytes);
        arguments += " " + name + ".o";
    }
    auto [log, good] = compiler(work.path, arguments);
    linked.log = log;
    linked.image = read(work.path / "image");
    return good ? 0 : 5;
}
int nvJitLinkGetLinkedCubinSize(void *of, size_t *bytes) {
    return *bytes = static_cast<link *>(of)->image.size(), 0;
}
int nvJitLinkGetLinkedCubin(void *of, void *to) { return give(static_cast<link *>(of)->image, to); }
int nvJitLinkGetErrorLogSize(void *of, size_t *bytes) {
    return *bytes = static_cast<link *>(of)->log.size() + 1, 0;
}
int nvJitLinkGetErrorLog(void *of, char *to) {
    std::strcpy(to, static_cast<link *>(of)->log.c_str());
    return 0;
}

} // extern "C"
