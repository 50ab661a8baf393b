// Streams and events. A stream is a queue; whoever waits for it runs it. Nothing runs by itself.
//
// Unless CALM_HOST_DEVICE_LATE=1, work is run as soon as it is queued. With it, work is run when something
// waits for it and not before: a result read without waiting is then one that is not there.
#include "device.h"

#include <chrono>
#include <deque>
#include <map>
#include <set>

namespace host_device {

uint64_t synchronisations = 0;
thread_local uint64_t synchronisations_here = 0;
uint64_t launches = 0;

struct Stream {
    explicit Stream(bool ordered) : blocking(ordered) {}

    // Ordered against the legacy default stream.
    bool blocking;
    uint64_t issued = 0;
    uint64_t done = 0;
    std::deque<std::function<void()>> queue;
};

struct Moment {
    StreamRef stream;
    uint64_t place;
    double passed;
};

namespace {

// Work that a stream holds back at most; a device has a limit too.
constexpr size_t QUEUE = 20000;

struct Streams {
    StreamRef legacy = std::make_shared<Stream>(true);
    std::set<StreamRef> all{legacy};
    std::map<void*, StreamRef> by_handle;
};

Streams& streams() {
    static Streams& s = *new Streams;
    return s;
}

void run_until(const StreamRef& stream, uint64_t place) {
    while (stream->done < place) {
        const std::function<void()> work = std::move(stream->queue.front());
        stream->queue.pop_front();
        work();
        stream->done++;
    }
}

// The calling thread's own default stream; what is left runs when the thread ends.
struct ThreadStream {
    StreamRef stream;
    ~ThreadStream() {
        if (stream != nullptr) {
            Guard guard;
            run_until(stream, stream->issued);
            streams().all.erase(stream);
        }
    }
};
thread_local ThreadStream thread_stream;

bool late() {
    static const bool on = switched_on("CALM_HOST_DEVICE_LATE");
    return on;
}

void push(const StreamRef& stream, std::function<void()> work) {
    stream->queue.push_back(std::move(work));
    stream->issued++;
}

void push_wait(const StreamRef& stream, const StreamRef& other, uint64_t place) {
    if (other->done < place && other != stream) {
        push(stream, [other, place] { run_until(other, place); });
    }
}

double now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(since).count();
}

}  // namespace

StreamRef find_stream(void* handle) {
    const uint64_t value = reinterpret_cast<uint64_t>(handle);
    if (value <= 1) {
        return streams().legacy;
    }
    if (value == 2) {
        if (thread_stream.stream == nullptr) {
            thread_stream.stream = std::make_shared<Stream>(true);
            streams().all.insert(thread_stream.stream);
        }
        return thread_stream.stream;
    }
    const auto at = streams().by_handle.find(handle);
    return at == streams().by_handle.end() ? nullptr : at->second;
}

Status create_stream(void** handle, bool blocking) {
    const StreamRef stream = std::make_shared<Stream>(blocking);
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
    finish(at->second);
    streams().all.erase(at->second);
    streams().by_handle.erase(at);
    return SUCCESS;
}

void enqueue(const StreamRef& stream, std::function<void()> work) {
    const StreamRef& legacy = streams().legacy;
    if (stream == legacy) {
        for (const StreamRef& other : streams().all) {
            if (other->blocking) {
                push_wait(stream, other, other->issued);
            }
        }
    } else if (stream->blocking) {
        push_wait(stream, legacy, legacy->issued);
    }
    push(stream, std::move(work));
    if (!late() || stream->queue.size() > QUEUE) {
        finish(stream);
    }
}

void finish(const StreamRef& stream) { run_until(stream, stream->issued); }

void finish_all() {
    for (const StreamRef& stream : streams().all) {
        finish(stream);
    }
}

bool is_finished(const StreamRef& stream) { return stream->done == stream->issued; }

void count_synchronisation() {
    synchronisations++;
    synchronisations_here++;
}

MomentRef record(const StreamRef& stream) {
    const MomentRef moment = std::make_shared<Moment>(Moment{stream, 0, 0.0});
    // The waits that come with it are counted too, so the place is known only afterwards; it must be set
    // before anything runs.
    enqueue(stream, [weak = std::weak_ptr<Moment>(moment)] {
        if (const MomentRef passed = weak.lock()) {
            passed->passed = now();
        }
    });
    moment->place = stream->issued;
    return moment;
}

void wait_for(const StreamRef& stream, const MomentRef& moment) {
    if (!is_finished(moment)) {
        enqueue(stream, [moment] { finish(moment); });
    }
}

void finish(const MomentRef& moment) { run_until(moment->stream, moment->place); }

bool is_finished(const MomentRef& moment) { return moment->stream->done >= moment->place; }

double milliseconds(const MomentRef& from, const MomentRef& to) { return to->passed - from->passed; }

}  // namespace host_device
