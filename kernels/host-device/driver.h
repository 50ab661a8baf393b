// What the entry points of the driver API begin with (driver.cpp, driver_memory.cpp, driver_launch.cpp).
#pragma once

#include "device.h"

namespace host_device {

bool is_initialised();
bool has_context();

}  // namespace host_device

// Takes the lock; returns the status that stands in the way of any call.
#define ENTER_WITHOUT_CONTEXT                         \
    host_device::Guard guard;                         \
    if (!host_device::is_initialised()) {             \
        return host_device::NOT_INITIALIZED;          \
    }                                                 \
    if (host_device::device_failure() != 0) {         \
        return host_device::device_failure();         \
    }

#define ENTER                                         \
    ENTER_WITHOUT_CONTEXT                             \
    if (!host_device::has_context()) {                \
        return host_device::complain(host_device::INVALID_CONTEXT, "%s without a current context", __func__); \
    }
