// Streams and events. A stream is a queue; whoever waits for it runs it. Nothing runs by itself, but what is
// done elsewhere (a transfer between devices): the stream stands still until that is done.
//
// Unless CALM_HOST_DEVICE_LATE=1, work is run as soon as it is queued. With it, work is run when something
// waits for it and not before: a result read without waiting is then one that is not there.
#include "device.h"

#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <set>

namespace host_device {

uint64_t synchronisations = 0;
thread_local uint64_t synchronisations_here = 0;
uint64_t launches = 0;

// One of three: work to run, a place in another stream to wait for, or work that is done elsewhere.
struct Work {
    std::function<void()> run;
    StreamRef other;
    uint64_t place = 0;
    OutsideRef outside;
};

struct Stream {
    Stream(int of, bool ordered) : device(of), blocking(ordered) {}

    int device;
    // Ordered against the legacy default stream.
    bool blocking;
    uint64_t issued = 0;
    uint64_t done = 0;
    std::deque<Work> queue;
};

struct Moment {
    StreamRef stream;
    uint64_t place;
    double passed;
};

struct Outside {
    std::function<void()> start;
    MomentRef place;
    bool started = false;
    bool done = false;
};

namespace {

// Work that a stream holds back at most; a device has a limit too.
constexpr size_t QUEUE = 20000;

struct Streams {
    std::array<StreamRef, MAX_DEVICES> legacy;
    std::set<StreamRef> all;
    std::map<void*, StreamRef> by_handle;

    Streams() {
        for (int device = 0; device < MAX_DEVICES; device++) {
            legacy[size_t(device)] = std::make_shared<Stream>(device, true);
            all.insert(legacy[size_t(device)]);
        }
    }
};

Streams& streams() {
    static Streams& s = *new Streams;
    return s;
}

// Whether the stream has come to the place; false only if it has not and `waiting` is.
// The lock is given up while it waits, and then another thread may take the stream further: what is waited
// for stays in the queue until it has been passed.
bool run_until(const StreamRef& stream, uint64_t place, bool waiting) {
    while (stream->done < place) {
        Work& next = stream->queue.front();
        if (next.outside != nullptr && !next.outside->done) {
            const OutsideRef outside = next.outside;
            if (!outside->started) {
                outside->started = true;
                outside->start();
            } else if (!waiting) {
                return false;
            } else {
                device_lock.wait([&] { return outside->done; });
            }
        } else if (next.other != nullptr && next.other->done < next.place) {
            const StreamRef other = next.other;
            if (!run_until(other, next.place, waiting)) {
                return false;
            }
        } else {
            const Work work = std::move(next);
            stream->queue.pop_front();
            if (work.run) {
                work.run();
            }
            stream->done++;
        }
    }
    return true;
}

// The calling thread's own default streams; what is left runs when the thread ends.
struct ThreadStreams {
    std::array<StreamRef, MAX_DEVICES> of_device;
    ~ThreadStreams() {
        for (const StreamRef& stream : of_device) {
            if (stream != nullptr) {
                Guard guard;
                run_until(stream, stream->issued, true);
                streams().all.erase(stream);
            }
        }
    }
};
thread_local ThreadStreams thread_streams;

bool late() {
    static const bool on = switched_on("CALM_HOST_DEVICE_LATE");
    return on;
}

void push(const StreamRef& stream, Work work) {
    stream->queue.push_back(std::move(work));
    stream->issued++;
}

void push_wait(const StreamRef& stream, const StreamRef& other, uint64_t place) {
    if (other->done < place && other != stream) {
        push(stream, Work{nullptr, other, place, nullptr});
    }
}

// What the order of the default stream asks for, and the work; its place.
uint64_t push_in_order(const StreamRef& stream, Work work) {
    const StreamRef& legacy = streams().legacy[size_t(stream->device)];
    if (stream == legacy) {
        for (const StreamRef& other : streams().all) {
            if (other->blocking && other->device == stream->device) {
                push_wait(stream, other, other->issued);
            }
        }
    } else if (stream->blocking) {
        push_wait(stream, legacy, legacy->issued);
    }
    push(stream, std::move(work));
    return stream->issued;
}

void go_on(const StreamRef& stream) {
    if (stream->queue.size() > QUEUE) {
        finish(stream);
    } else if (!late()) {
        advance(stream);
    }
}

double now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(since).count();
}

}  // namespace

StreamRef find_stream(void* handle, int device) {
    const uint64_t value = reinterpret_cast<uint64_t>(handle);
    if (value <= 1) {
        return streams().legacy[size_t(device)];
    }
    if (value == 2) {
        StreamRef& mine = thread_streams.of_device[size_t(device)];
        if (mine == nullptr) {
            mine = std::make_shared<Stream>(device, true);
            streams().all.insert(mine);
        }
        return mine;
    }
    const auto at = streams().by_handle.find(handle);
    return at == streams().by_handle.end() ? nullptr : at->second;
}

int device_of(const StreamRef& stream) { return stream->device; }

Status create_stream(void** handle, bool blocking) {
    const StreamRef stream = std::make_shared<Stream>(current_device(), blocking);
    streams().all.insert(stream);
    streams().by_handle[stream.get()] = stream;
    *handle = stream.get();
    return SUCCESS;
}

Status destroy_stream(void* handle) {
    const auto at = streams().by_handle.find(handle);
    if (at == streams().by_handle.end()) {
        return complain(INVALID_HANDLE, "destroyed %p, which is no stream", handle);
    }
    const StreamRef stream = at->second;
    streams().by_handle.erase(at);
    finish(stream);
    streams().all.erase(stream);
    return SUCCESS;
}

uint64_t enqueue(const StreamRef& stream, std::function<void()> work) {
    const uint64_t place = push_in_order(stream, Work{std::move(work), nullptr, 0, nullptr});
    go_on(stream);
    return place;
}

OutsideRef make_outside(std::function<void()> start) {
    const OutsideRef outside = std::make_shared<Outside>();
    outside->start = std::move(start);
    return outside;
}

void enqueue(const StreamRef& stream, const OutsideRef& outside) {
    const uint64_t place = push_in_order(stream, Work{nullptr, nullptr, 0, outside});
    outside->place = std::make_shared<Moment>(Moment{stream, place, 0.0});
    go_on(stream);
}

void done(const OutsideRef& outside) {
    outside->done = true;
    device_lock.wake();
    if (!late()) {
        // A copy: what runs may end a stream.
        const std::set<StreamRef> all = streams().all;
        for (const StreamRef& stream : all) {
            advance(stream);
        }
    }
}

const MomentRef& place_of(const OutsideRef& outside) { return outside->place; }

void finish(const StreamRef& stream) { run_until(stream, stream->issued, true); }

void finish_all(int device) {
    // A copy: other threads may make and end streams while this one waits.
    const std::set<StreamRef> all = streams().all;
    for (const StreamRef& stream : all) {
        if (stream->device == device) {
            finish(stream);
        }
    }
}

void advance(const StreamRef& stream) { run_until(stream, stream->issued, false); }

bool is_finished(const StreamRef& stream) { return stream->done == stream->issued; }

void count_synchronisation() {
    synchronisations++;
    synchronisations_here++;
}

MomentRef record(const StreamRef& stream) {
    const MomentRef moment = std::make_shared<Moment>(Moment{stream, 0, 0.0});
    // The waits that come with it are counted too, so the place is known only afterwards; it must be set
    // before anything runs.
    moment->place = enqueue(stream, [weak = std::weak_ptr<Moment>(moment)] {
        if (const MomentRef passed = weak.lock()) {
            passed->passed = now();
        }
    });
    return moment;
}

void wait_for(const StreamRef& stream, const MomentRef& moment) {
    push_wait(stream, moment->stream, moment->place);
}

void finish(const MomentRef& moment) { run_until(moment->stream, moment->place, true); }

void advance(const MomentRef& moment) { run_until(moment->stream, moment->place, false); }

bool is_finished(const MomentRef& moment) { return moment->stream->done >= moment->place; }

double milliseconds(const MomentRef& from, const MomentRef& to) { return to->passed - from->passed; }

}  // namespace host_device
