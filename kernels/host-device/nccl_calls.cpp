// libnccl: collectives, and messages between two ranks. Every rank reads what all have put down and computes
// for itself, in the order of the ranks and in f32 (f64 for f64), so the bits are the same everywhere.
#include "nccl.h"

#include "candle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace nccl {
namespace {

template <class W> W combine(W a, W b, Operation operation) {
    switch (operation) {
    case PROD:
        if constexpr (std::is_integral_v<W>) {
            return W(uint64_t(a) * uint64_t(b));
        } else {
            return a * b;
        }
    case MAX:
        if constexpr (std::is_integral_v<W>) {
            return std::max(a, b);
        } else {
            return std::fmax(a, b);
        }
    case MIN:
        if constexpr (std::is_integral_v<W>) {
            return std::min(a, b);
        } else {
            return std::fmin(a, b);
        }
    default:
        if constexpr (std::is_integral_v<W>) {
            return W(uint64_t(a) + uint64_t(b));
        } else {
            return a + b;
        }
    }
}

// `count` elements that lie `offset` bytes into the ranks' slots.
template <class T>
void reduce_as(const Room& room, size_t offset, Operation operation, void* out, size_t count) {
    using W = candle::Wide<T>;
    constexpr size_t BLOCK = 1024;
    W sums[BLOCK];
    for (size_t first = 0; first < count; first += BLOCK) {
        const size_t n = std::min(BLOCK, count - first);
        for (int r = 0; r < room.ranks; r++) {
            const T* const part = reinterpret_cast<const T*>(room.slot_of(r) + offset) + first;
            for (size_t i = 0; r == 0 && i < n; i++) {
                sums[i] = candle::wide(part[i]);
            }
            for (size_t i = 0; r > 0 && i < n; i++) {
                sums[i] = combine<W>(sums[i], candle::wide(part[i]), operation);
            }
        }
        for (size_t i = 0; i < n; i++) {
            const W sum = operation == AVG ? W(sums[i] / W(room.ranks)) : sums[i];
            static_cast<T*>(out)[first + i] = candle::narrow<T>(sum);
        }
    }
}

void reduce(const Room& room, size_t offset, const Call& call, void* out, size_t count) {
    switch (call.type) {
    case I8: return reduce_as<int8_t>(room, offset, call.operation, out, count);
    case U8: return reduce_as<uint8_t>(room, offset, call.operation, out, count);
    case I32: return reduce_as<int32_t>(room, offset, call.operation, out, count);
    case U32: return reduce_as<uint32_t>(room, offset, call.operation, out, count);
    case I64: return reduce_as<int64_t>(room, offset, call.operation, out, count);
    case U64: return reduce_as<uint64_t>(room, offset, call.operation, out, count);
    case F16: return reduce_as<candle::f16>(room, offset, call.operation, out, count);
    case BF16: return reduce_as<bf16>(room, offset, call.operation, out, count);
    case F64: return reduce_as<double>(room, offset, call.operation, out, count);
    default: return reduce_as<float>(room, offset, call.operation, out, count);
    }
}

// A collective, in turns of as many bytes as fit into a slot.
Result collective(Room& room, const Call& call) {
    const Agreement agreement = {call.kind, uint32_t(call.type), uint32_t(call.operation), call.root,
                                 call.count};
    const char* const send = static_cast<const char*>(call.send);
    char* const recv = static_cast<char*>(call.recv);
    const size_t element = size_of(call.type), bytes = call.count * element;
    // A slot holds a part for every rank.
    const bool scatters = call.kind == REDUCE_SCATTER;
    const size_t step = scatters ? Room::SLOT / size_t(room.ranks) / 16 * 16 : Room::SLOT;
    const bool is_root = room.rank == call.root;
    for (size_t at = 0; at < bytes; at += step) {
        const size_t n = std::min(step, bytes - at);
        for (int r = 0; scatters && r < room.ranks; r++) {
            memcpy(room.my_slot() + size_t(r) * step, send + size_t(r) * bytes + at, n);
        }
        if (!scatters && (call.kind != BROADCAST || is_root)) {
            memcpy(room.my_slot(), send + at, n);
        }
        if (const Result result = room.turn(agreement)) {
            return result;
        }
        switch (call.kind) {
        case BROADCAST:
            memcpy(recv + at, room.slot_of(call.root), n);
            break;
        case ALL_GATHER:
            for (int r = 0; r < room.ranks; r++) {
                memcpy(recv + size_t(r) * bytes + at, room.slot_of(r), n);
            }
            break;
        case REDUCE_SCATTER:
            reduce(room, size_t(room.rank) * step, call, recv + at, n / element);
            break;
        default:
            if (call.kind == ALL_REDUCE || is_root) {
                reduce(room, 0, call, recv + at, n / element);
            }
        }
    }
    return SUCCESS;
}

// A message on its way. It is sent when the other rank has taken all of it.
struct Message {
    const Call& call;
    size_t bytes;
    size_t moved = 0;
    bool begun = false;
    bool ended = false;
};

// Moves what can be moved now.
Result move(Room& room, Message& message) {
    const bool sends = message.call.kind == SEND;
    const int peer = message.call.root;
    Channel& channel = sends ? room.channel(room.rank, peer) : room.channel(peer, room.rank);
    const auto moves = [&] { return !message.begun || message.moved < message.bytes; };
    while (sends && moves() && channel.written - channel.read < PIECES) {
        const uint64_t piece = channel.written;
        const size_t n = std::min(PIECE, message.bytes - message.moved);
        if (n > 0) {
            memcpy(room.data(channel, piece), static_cast<const char*>(message.call.send) + message.moved, n);
        }
        channel.bytes[piece % PIECES] = n;
        channel.message[piece % PIECES] = message.bytes;
        channel.written = piece + 1;
        message.moved += n;
        message.begun = true;
        room.ring(peer);
    }
    while (!sends && moves() && channel.read < channel.written) {
        const uint64_t piece = channel.read;
        const size_t n = channel.bytes[piece % PIECES];
        if (channel.message[piece % PIECES] != message.bytes) {
            return fail(INVALID_USAGE, "rank %d sends %llu bytes, rank %d receives %zu", peer,
                        (unsigned long long)channel.message[piece % PIECES], room.rank, message.bytes);
        }
        if (n > 0) {
            memcpy(static_cast<char*>(message.call.recv) + message.moved, room.data(channel, piece), n);
        }
        channel.read = piece + 1;
        message.moved += n;
        message.begun = true;
        room.ring(peer);
    }
    message.ended = !moves() && (!sends || channel.read == channel.written);
    return SUCCESS;
}

// All messages of a group at once, those of one channel in their order.
Result exchange(Room& room, std::vector<Message>& messages) {
    Result result = SUCCESS;
    const Result waited = room.wait([&](int peer) {
        const auto waits = [&](const Message& m) { return m.call.root == peer && !m.ended; };
        for (const Kind kind : {SEND, RECV}) {
            for (Message& message : messages) {
                if (message.call.kind == kind && waits(message) && result == SUCCESS) {
                    result = move(room, message);
                    if (!message.ended) {
                        break;
                    }
                }
            }
        }
        return result == SUCCESS && std::any_of(messages.begin(), messages.end(), waits);
    });
    return result == SUCCESS ? waited : result;
}

size_t received(const Room& room, const Call& call) {
    const size_t bytes = call.count * size_of(call.type);
    switch (call.kind) {
    case SEND: return 0;
    case REDUCE: return room.rank == call.root ? bytes : 0;
    case BROADCAST: return room.rank == call.root ? 0 : bytes;
    case ALL_GATHER: return bytes * size_t(room.ranks);
    default: return bytes;
    }
}

}  // namespace

const char* name_of(Kind kind) {
    constexpr const char* NAMES[] = {"ncclAllReduce", "ncclReduce", "ncclBroadcast", "ncclAllGather",
                                     "ncclReduceScatter", "ncclSend", "ncclRecv"};
    return NAMES[kind];
}

const char* name_of(Type type) {
    constexpr const char* NAMES[] = {"int8", "uint8", "int32", "uint32", "int64", "uint64",
                                     "float16", "float32", "float64", "bfloat16", "float8e4m3", "float8e5m2"};
    return NAMES[type];
}

size_t size_of(Type type) {
    constexpr size_t SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return SIZES[type];
}

Result carry_out(Room& room, const std::vector<Call>& calls) {
    std::vector<Message> messages;
    for (const Call& call : calls) {
        if (call.kind == SEND || call.kind == RECV) {
            messages.push_back(Message{call, call.count * size_of(call.type)});
        } else if (const Result result = collective(room, call)) {
            return result;
        }
    }
    return messages.empty() ? SUCCESS : exchange(room, messages);
}

void spoil(const Room& room, const std::vector<Call>& calls) {
    for (const Call& call : calls) {
        if (received(room, call) > 0) {
            memset(call.recv, 0xFF, received(room, call));
        }
    }
}

}  // namespace nccl
