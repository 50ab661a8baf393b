// libnccl: the shared memory in which ranks meet, whether they are threads or processes of one machine.
//
// It has no name: the unique id says which process made it and as which open file, and the others open it
// through /proc, so nothing stays behind however they end. Each rank holds a lock on its byte of the file
// with an open file of its own; the system lets go of it when the process ends, and then the rank has gone.
// Waiting sleeps on the rank's bell, a futex; every TICK it looks whether those it waits for are still there.
#include "nccl.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <fcntl.h>
#include <linux/futex.h>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace nccl {

namespace {

constexpr long TICK = 20'000'000;  // ns
constexpr size_t PAGE = 4096;
constexpr char MAGIC[8] = {'c', 'a', 'l', 'm', 'n', 'c', 'c', 'l'};
constexpr size_t TOKEN = 16;

// What is in a unique id.
struct Address {
    char magic[sizeof MAGIC];
    int32_t process, file;
    char token[TOKEN];
};
static_assert(sizeof(Address) <= sizeof(UniqueId));

enum State : uint32_t { EMPTY, TAKEN, SEATED };

Address address_of(const UniqueId& id) {
    Address address;
    memcpy(&address, id.internal, sizeof address);
    return address;
}

// Rooms that this process made and not all ranks have entered.
std::mutex& made_lock() {
    static std::mutex& lock = *new std::mutex;
    return lock;
}
std::map<std::string, int>& made() {
    static auto& all = *new std::map<std::string, int>;
    return all;
}

void close_made(const Address& address) {
    std::lock_guard<std::mutex> held(made_lock());
    const auto at = made().find(std::string(address.token, TOKEN));
    if (at != made().end()) {
        close(at->second);
        made().erase(at);
    }
}

struct flock byte_of(int rank) {
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = rank;
    lock.l_len = 1;
    return lock;
}

}  // namespace

struct Seat {
    std::atomic<uint32_t> state, bell, failed;
    int32_t process;
    char bus[16];
    // Of collectives: the last turn for which the rank's part lies in its slot, and what the rank said.
    std::atomic<uint64_t> turns;
    Agreement said[2];
};

struct Header {
    char token[TOKEN];
    std::atomic<uint32_t> ranks;
    // Whether a rank could not come in.
    std::atomic<uint32_t> refused;
    Seat seats[Room::MAX_RANKS];
};

namespace {

constexpr size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }
constexpr size_t SLOTS = whole_pages(sizeof(Header));
constexpr size_t CHANNEL = whole_pages(sizeof(Channel)) + PIECES * PIECE;

size_t channels_at(int ranks) { return SLOTS + size_t(ranks) * 2 * Room::SLOT; }

std::string described(const Agreement& a) {
    return std::string(name_of(Kind(a.kind))) + " of " + std::to_string(a.count) + " " + name_of(Type(a.type)) +
           " (operation " + std::to_string(a.operation) + ", root " + std::to_string(a.root) + ")";
}

void ring_bell(Seat& seat) {
    seat.bell++;
    syscall(SYS_futex, &seat.bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

Result Room::create(UniqueId* id) {
    Address address = {};
    memcpy(address.magic, MAGIC, sizeof MAGIC);
    if (getrandom(address.token, TOKEN, 0) != ssize_t(TOKEN)) {
        return fail(SYSTEM_ERROR, "no random bytes for a unique id: %s", strerror(errno));
    }
    const int file = memfd_create("calm host device: NCCL", MFD_CLOEXEC);
    if (file < 0 || write(file, address.token, TOKEN) != ssize_t(TOKEN)) {
        return fail(SYSTEM_ERROR, "no shared memory for a unique id: %s", strerror(errno));
    }
    address.process = getpid();
    address.file = file;
    memset(id->internal, 0, sizeof id->internal);
    memcpy(id->internal, &address, sizeof address);
    std::lock_guard<std::mutex> held(made_lock());
    made()[std::string(address.token, TOKEN)] = file;
    return SUCCESS;
}

// Opens the memory and takes the rank's seat.
Result Room::enter() {
    const Address address = address_of(id);
    if (memcmp(address.magic, MAGIC, sizeof MAGIC) != 0) {
        return fail(INVALID_ARGUMENT, "the unique id is not one of ncclGetUniqueId");
    }
    const std::string files = "/proc/" + std::to_string(address.process) + "/fd/";
    file = open((files + std::to_string(address.file)).c_str(), O_RDWR | O_CLOEXEC);
    char token[TOKEN];
    const bool read = file >= 0 && pread(file, token, TOKEN, 0) == ssize_t(TOKEN);
    if (!read || memcmp(token, address.token, TOKEN) != 0) {
        return fail(REMOTE_ERROR, "rank %d: process %d, which made the unique id, has gone or has used it", rank,
                    address.process);
    }
    size = channels_at(ranks) + size_t(ranks) * size_t(ranks) * CHANNEL;
    struct stat now;
    // All ranks give it the same size.
    if (fstat(file, &now) != 0 || (size_t(now.st_size) < size && ftruncate(file, off_t(size)) != 0)) {
        return fail(SYSTEM_ERROR, "%zu bytes of shared memory: %s", size, strerror(errno));
    }
    void* const mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        return fail(SYSTEM_ERROR, "%zu bytes of shared memory: %s", size, strerror(errno));
    }
    header = static_cast<Header*>(mapped);
    Header& h = *header;
    uint32_t expected = 0;
    if (!h.ranks.compare_exchange_strong(expected, uint32_t(ranks)) && expected != uint32_t(ranks)) {
        return fail(INVALID_ARGUMENT, "rank %d speaks of %d ranks, another one of %u", rank, ranks, expected);
    }
    Seat& seat = h.seats[rank];
    expected = EMPTY;
    if (!seat.state.compare_exchange_strong(expected, TAKEN)) {
        return fail(INVALID_ARGUMENT, "there are two ranks %d", rank);
    }
    struct flock lock = byte_of(rank);
    if (fcntl(file, F_OFD_SETLK, &lock) != 0) {
        return fail(SYSTEM_ERROR, "a lock on shared memory: %s", strerror(errno));
    }
    seat.process = getpid();
    calm_host_device_bus(device, seat.bus, sizeof seat.bus);
    seat.state = SEATED;
    for (int r = 0; r < ranks; r++) {
        ring(r);
    }
    return SUCCESS;
}

Result Room::join() {
    Result result = enter();
    if (result != SUCCESS) {
        if (Header* const h = header) {
            h->refused = 1;
            for (Seat& seat : h->seats) {
                ring_bell(seat);
            }
        }
        leave();
    } else {
        const Header& h = *header;
        const Seat* const seats = h.seats;
        const auto stands = [](const Seat& seat) { return seat.state != SEATED; };
        const auto all_sit = [&] { return std::none_of(seats, seats + ranks, stands); };
        // Nobody else comes in for one that has gone, unless all were there.
        result = wait([&](int r) {
            return !all_sit() && h.refused == 0 && (stands(seats[r]) || (r != rank && has_gone(r)));
        });
        if (result == SUCCESS && !all_sit()) {
            result = fail(REMOTE_ERROR, "rank %d waits for all to join, and another rank could not", rank);
        }
        for (int r = 0; result == SUCCESS && r < ranks; r++) {
            for (int other = 0; other < r; other++) {
                if (strcmp(seats[r].bus, seats[other].bus) == 0) {
                    result = fail(INVALID_USAGE,
                                  "Duplicate GPU detected: rank %d and rank %d both on CUDA device %s", other,
                                  r, seats[r].bus);
                }
            }
        }
    }
    close_made(address_of(id));
    return result;
}

void Room::abort() {
    aborted = true;
    if (header.load() != nullptr) {
        ring(rank);
    }
}

void Room::report_failure() {
    if (Header* const h = header) {
        h->seats[rank].failed = 1;
        for (int r = 0; r < ranks; r++) {
            ring(r);
        }
    }
}

void Room::leave() {
    if (file >= 0) {
        close(file);
        file = -1;
    }
    if (Header* const mapped = header.exchange(nullptr)) {
        munmap(mapped, size);
    }
}

bool Room::has_gone(int other) const {
    const Seat& seat = header.load()->seats[other];
    if (seat.failed != 0) {
        return true;
    }
    struct flock lock = byte_of(other);
    return seat.state == SEATED && fcntl(file, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

void Room::ring(int other) { ring_bell(header.load()->seats[other]); }

Result Room::wait(const std::function<bool(int)>& pending) {
    Seat* const seats = header.load()->seats;
    for (;;) {
        const uint32_t heard = seats[rank].bell;
        bool waiting = false;
        for (int r = 0; r < ranks; r++) {
            waiting = pending(r) || waiting;
        }
        if (!waiting) {
            return SUCCESS;
        }
        if (aborted) {
            return fail(INVALID_USAGE, "rank %d was aborted while it waited for others", rank);
        }
        const timespec tick = {0, TICK};
        const long woken = syscall(SYS_futex, &seats[rank].bell, FUTEX_WAIT, heard, &tick, nullptr, 0);
        if (woken == 0 || errno != ETIMEDOUT) {
            continue;
        }
        for (int r = 0; r < ranks; r++) {
            // Once more: it may have done its part and gone since.
            if (r != rank && has_gone(r) && pending(r)) {
                return fail(REMOTE_ERROR, "rank %d waits for rank %d (process %d), which %s", rank, r,
                            seats[r].process, seats[r].failed != 0 ? "has failed" : "has gone");
            }
        }
    }
}

char* Room::slot(int other, uint64_t turn) const {
    return reinterpret_cast<char*>(header.load()) + SLOTS + (size_t(other) * 2 + turn % 2) * SLOT;
}

char* Room::my_slot() { return slot(rank, turns + 1); }
const char* Room::slot_of(int other) const { return slot(other, turns); }

// There are two slots: who puts turn n + 2 down has seen that all came to turn n + 1, past reading turn n.
Result Room::turn(const Agreement& agreement) {
    Seat* const seats = header.load()->seats;
    turns++;
    seats[rank].said[turns % 2] = agreement;
    seats[rank].turns = turns;
    for (int r = 0; r < ranks; r++) {
        if (r != rank) {
            ring(r);
        }
    }
    if (const Result result = wait([&](int r) { return seats[r].turns < turns; })) {
        return result;
    }
    for (int r = 0; r < ranks; r++) {
        const Agreement& theirs = seats[r].said[turns % 2];
        if (memcmp(&theirs, &agreement, sizeof agreement) != 0) {
            return fail(INVALID_USAGE, "rank %d calls %s, rank %d %s", rank, described(agreement).c_str(), r,
                        described(theirs).c_str());
        }
    }
    return SUCCESS;
}

Channel& Room::channel(int from, int to) {
    const size_t place = channels_at(ranks) + (size_t(from) * size_t(ranks) + size_t(to)) * CHANNEL;
    return *reinterpret_cast<Channel*>(reinterpret_cast<char*>(header.load()) + place);
}

char* Room::data(Channel& channel, uint64_t piece) {
    return reinterpret_cast<char*>(&channel) + whole_pages(sizeof(Channel)) + piece % PIECES * PIECE;
}

}  // namespace nccl
