/* Orders of rows: a stable sort of numbers with their rows, and rows by group and then by up to three times. */
#ifndef TIDEMILL_SORTING_H
#define TIDEMILL_SORTING_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t key;
    uint32_t row;
} sort_pair;

/* Keys that compare, unsigned, as the numbers do. No NaN; -0.0 comes before 0.0. */
static inline uint64_t sort_key(int64_t value) { return (uint64_t)value ^ UINT64_C(1) << 63; }

static inline uint64_t sort_key_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

/* Sort pairs by key; equal keys keep their order. `spare` has room for as many. */
static inline void sort_pairs(sort_pair *pairs, sort_pair *spare, size_t count) {
    if (count <= 48) {
        for (size_t i = 1; i < count; i++) {
            sort_pair moved = pairs[i];
            size_t place = i;
            for (; place && pairs[place - 1].key > moved.key; place--) pairs[place] = pairs[place - 1];
            pairs[place] = moved;
        }
        return;
    }
    uint64_t either = 0, both = ~UINT64_C(0);
    int sorted = 1;
    for (size_t i = 0; i < count; i++) {
        either |= pairs[i].key;
        both &= pairs[i].key;
        sorted &= !i || pairs[i - 1].key <= pairs[i].key;
    }
    if (sorted) return;
    sort_pair *from = pairs, *to = spare;
    for (int shift = 0; shift < 64; shift += 8) {
        if (((either ^ both) >> shift & 255) == 0) continue; /* all alike in this byte */
        size_t places[256] = {0}, sum = 0;
        for (size_t i = 0; i < count; i++) places[from[i].key >> shift & 255]++;
        for (int byte = 0; byte < 256; byte++) {
            size_t size = places[byte];
            places[byte] = sum;
            sum += size;
        }
        for (size_t i = 0; i < count; i++) to[places[from[i].key >> shift & 255]++] = from[i];
        sort_pair *swap = from;
        from = to;
        to = swap;
    }
    if (from != pairs) memcpy(pairs, from, count * sizeof *pairs);
}

/* Sort `rows`, which are in order of their number, by times[0], then times[1], …; rows with equal times stay in order.
 * Returns -1 when memory runs out. */
static inline int sort_rows(uint32_t *rows, size_t count, const int64_t *const *times, int keys, sort_pair **spare,
                            size_t *room) {
    int need = 0; /* the number of leading keys by which the rows must be sorted; the rest they are in order of */
    for (int key = keys - 1; key >= 0 && !need; key--) {
        /* Rows that are in order of keys key, key + 1, … may be sorted by the earlier keys alone. */
        for (size_t i = 1; i < count && !need; i++) {
            for (int each = key; each < keys; each++) {
                int64_t before = times[each][rows[i - 1]], after = times[each][rows[i]];
                if (before < after) break;
                if (before > after) {
                    need = key + 1;
                    break;
                }
            }
        }
    }
    if (!need) return 0;
    if (*room < count) {
        sort_pair *more = realloc(*spare, 2 * count * sizeof **spare);
        if (!more) return -1;
        *spare = more;
        *room = count;
    }
    for (int key = need - 1; key >= 0; key--) {
        for (size_t i = 0; i < count; i++) (*spare)[i] = (sort_pair){sort_key(times[key][rows[i]]), rows[i]};
        sort_pairs(*spare, *spare + count, count);
        for (size_t i = 0; i < count; i++) rows[i] = (*spare)[i].row;
    }
    return 0;
}

#endif
