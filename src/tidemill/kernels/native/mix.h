/* A hash of whole numbers, one after the other, for tables in memory: its values mean nothing elsewhere. */
#ifndef TIDEMILL_MIX_H
#define TIDEMILL_MIX_H

#include <stdint.h>

static inline uint64_t mixed(uint64_t hash, uint64_t part) {
    hash = (hash ^ part) * UINT64_C(0x9E3779B97F4A7C15);
    hash = (hash ^ hash >> 32) * UINT64_C(0xD6E8FEB86659FD93);
    return hash ^ hash >> 32;
}

#endif
