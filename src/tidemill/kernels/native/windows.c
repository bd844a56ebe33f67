/* Windows over rows that come late and are replaced, for many queries: what windows.py and latest.py compute.
 *
 * A row with event time e that is visible for start < t <= end lies in the window [t - w, t) for exactly the t with
 * max(start, e) < t <= min(end, e + w): it opens and it closes. Rows are sorted by group and time, queries by group
 * and t; a group is answered in one of two ways, with the same bits:
 *
 *   - looked at: for each query, its rows from the newest back to the start of the widest window, once for all widths;
 *   - swept: in order of t, each row is added where it opens and taken away where it closes, for each width. Sums are
 *     exact, so that nothing is left behind. Almost all rows open and close in their order, and the smallest value of
 *     those is at the front of a monotonic queue; late and replaced ones go to heaps, and leave them when they come up.
 *
 * Sweeping is linear in rows and queries (but for a logarithm where there are heaps, distinct values or quantiles)
 * however many rows a window holds; looking is faster while that is few. Results: see windows.py.
 */
#include "buffers.h"
#include "exact.h"
#include "sorting.h"

enum { COUNT, SUM, MEAN, STD, MIN, MAX, FIRST, LAST, N_UNIQUE, QUANTILE, SINCE, FUNCTIONS };
enum { PRESENCE, FLOATS, INTEGERS, CODES }; /* what a value is kept as */
enum { EITHER, LOOK, SWEEP };               /* ways */

#define BIT(function) (1u << (function))
#define SUMMED (BIT(SUM) | BIT(MEAN) | BIT(STD))
#define NEWEST (BIT(LAST) | BIT(SINCE))
#define NONE UINT32_MAX
#define FOREVER INT64_MAX

/* Times that run beyond int64 stay at its ends; a width of FOREVER reaches back to the beginning. */
static inline int64_t before(int64_t t, int64_t width) {
    return width == FOREVER ? INT64_MIN : t < INT64_MIN + width ? INT64_MIN : t - width;
}

static inline int64_t after(int64_t time, int64_t width) {
    return width == FOREVER || time > INT64_MAX - width ? INT64_MAX : time + width;
}

/* Rows by a number, smallest first. */
typedef struct {
    double key;
    uint32_t row;
} Entry;

typedef struct {
    Entry *entries;
    size_t size, room;
} Heap;

/* Numbers by rank: which are there (bits), and how many in the words up to each (a Fenwick tree). */
typedef struct {
    uint64_t *bits;
    uint32_t *tree;
    uint32_t words, step; /* step: the largest power of two not above words */
} Ranks;

typedef struct {
    uint32_t *rows; /* values that can still become the smallest, in order of row */
    uint32_t head, tail;
    Heap heap; /* of late and replaced rows */
} Extreme;

/* What is known of a value in a window while a group is swept. */
typedef struct {
    unsigned needs;
    int64_t count, distinct, changes;
    exact_sum sum;
    exact_squares squares;
    Extreme low, high;
    uint32_t front; /* no row before it is the first */
    Heap firsts;
    uint32_t *counts; /* of each code */
    Ranks ranks;
} Cell;

/* A value that rows have. The arrays are those of the group at hand. */
typedef struct {
    int kind;
    unsigned needs;
    const double *all_floats;
    const int64_t *all_integers;
    const uint8_t *all_here;
    const uint32_t *all_codes;
    uint32_t codes; /* all codes are below */
    const double *floats;
    const int64_t *integers;
    const uint8_t *here; /* NULL: of all rows */
    const uint32_t *code;
    double *own_floats;
    int64_t *own_integers;
    uint8_t *own_here;
    uint32_t *own_code;
    /* looking */
    int64_t count, distinct, first, last;
    exact_sum sum;
    exact_squares squares;
    double low, high;
    double *picked, *sorted;
    uint32_t *present;
    uint32_t *seen, serial; /* seen[code]: the last query that met it */
    /* sweeping */
    Cell *cells; /* one for each width */
    uint32_t *newest, height; /* the last visible row is on top; below it, rows that outlive those above */
    Heap lasts;
    uint32_t *local, locals; /* codes as numbers from 0 in this group */
    uint32_t *rank;
    double *ranked;
} Value;

typedef struct {
    int function, width;
    Value *value;
    double q, *numbers;
    int64_t *integers;
    int64_t changes; /* of the cell when `last_number` was computed */
    double last_number;
} Feature;

typedef struct {
    const uint32_t *order, *query_order;
    const int64_t *bounds, *query_bounds, *event, *start, *end, *t;
    int64_t groups;
    size_t rows, queries;
    int64_t *widths; /* ascending */
    int width_count, value_count, feature_count, way, newest_only;
    Value *values;
    Feature *features;   /* in order of width */
    int *feature_bounds; /* of each width */
    /* the group at hand: rows [base, base + count) in order, and their times */
    size_t base, count, room, swept_room;
    const int64_t *ev, *st, *en;
    uint32_t *visible; /* rows, to a query */
    int64_t *own_ev, *own_st, *own_en;
    int64_t *opens;
    uint8_t *late;
    sort_pair *pairs;
    uint32_t *late_rows, *enders;
    size_t late_count, ender_count;
} Job;

/* Numbers. */

static inline double number(const Value *value, size_t row) {
    return value->floats ? value->floats[row] : (double)value->integers[row];
}

/* The number's integer, as exact_split gives it. */
static inline uint64_t split(const Value *value, size_t row, int *place, int64_t *sign) {
    if (value->floats) return exact_split(value->floats[row], place, sign);
    *place = -EXACT_SUM_UNIT;
    *sign = -(int64_t)(value->integers[row] < 0);
    return exact_magnitude(value->integers[row]);
}

static inline int is_here(const Value *value, size_t row) { return !value->here || value->here[row]; }

static inline int64_t source_row(const Job *job, int64_t row) {
    if (row < 0) return -1;
    size_t place = job->base + (size_t)row;
    return job->order ? (int64_t)job->order[place] : (int64_t)place;
}

/* Between the two numbers around the place (count - 1) * q: as numpy.quantile, and finite where that overflows. */
static double interpolate(double a, double b, double part) {
    double step = b - a;
    if (part == 0.0) return a + 0.0;
    if (!isfinite(step)) return a * (1.0 - part) + b * part + 0.0;
    return (part < 0.5 ? a + step * part : b - step * (1.0 - part)) + 0.0;
}

static double seconds(int64_t t, int64_t event) {
    uint64_t micros = (uint64_t)t - (uint64_t)event;
    if (micros <= UINT64_C(1) << 53) return (double)micros / 1e6;
    exact_number whole = {1, 0, 0, {micros}};
    return exact_quotient(&whole, 1000000);
}

/* Heaps. */

static int heap_push(Heap *heap, double key, uint32_t row) {
    if (heap->size == heap->room) {
        size_t room = heap->room ? 2 * heap->room : 64;
        Entry *entries = realloc(heap->entries, room * sizeof *entries);
        if (!entries) return -1;
        heap->entries = entries;
        heap->room = room;
    }
    size_t place = heap->size++;
    while (place && heap->entries[(place - 1) / 2].key > key) {
        heap->entries[place] = heap->entries[(place - 1) / 2];
        place = (place - 1) / 2;
    }
    heap->entries[place] = (Entry){key, row};
    return 0;
}

static void heap_pop(Heap *heap) {
    Entry moved = heap->entries[--heap->size];
    size_t place = 0;
    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= heap->size) break;
        if (child + 1 < heap->size && heap->entries[child + 1].key < heap->entries[child].key) child++;
        if (heap->entries[child].key >= moved.key) break;
        heap->entries[place] = heap->entries[child];
        place = child;
    }
    if (heap->size) heap->entries[place] = moved;
}

/* Ranks. */

static void ranks_flip(Ranks *ranks, uint32_t rank, uint32_t by) {
    ranks->bits[rank >> 6] ^= UINT64_C(1) << (rank & 63);
    for (uint32_t place = (rank >> 6) + 1; place <= ranks->words; place += place & (0 - place)) ranks->tree[place] += by;
}

/* The rank of number k (from 0) of those that are there, and in *next that of number k + 1, if there is one. */
static uint32_t ranks_find(const Ranks *ranks, uint32_t k, uint32_t *next) {
    uint32_t word = 0;
    for (uint32_t step = ranks->step; step; step >>= 1) {
        if (word + step <= ranks->words && ranks->tree[word + step] <= k) {
            word += step;
            k -= ranks->tree[word];
        }
    }
    uint64_t bits = ranks->bits[word];
    while (k--) bits &= bits - 1;
    uint32_t rank = (word << 6) + (uint32_t)__builtin_ctzll(bits);
    bits &= bits - 1;
    while (!bits && ++word < ranks->words) bits = ranks->bits[word];
    *next = bits ? (word << 6) + (uint32_t)__builtin_ctzll(bits) : rank;
    return rank;
}

/* Looking. */

/* Put the number that has place k in order at place k, smaller ones before it and larger ones behind (Hoare). */
static void select_place(double *numbers, size_t count, size_t k) {
    size_t low = 0, high = count - 1;
    while (low < high) {
        double a = numbers[low], b = numbers[low + (high - low) / 2], c = numbers[high];
        double pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        size_t i = low, j = high;
        for (;;) {
            while (numbers[i] < pivot) i++;
            while (numbers[j] > pivot) j--;
            if (i >= j) break;
            double swap = numbers[i];
            numbers[i++] = numbers[j];
            numbers[j--] = swap;
        }
        if (k <= j) {
            high = j;
        } else {
            low = j + 1;
        }
    }
}

static double look_quantile(Value *value, double q) {
    size_t count = (size_t)value->count;
    double place = (double)(count - 1) * q, whole = floor(place);
    size_t k = (size_t)whole;
    memcpy(value->sorted, value->picked, count * sizeof(double));
    select_place(value->sorted, count, k);
    double a = value->sorted[k], b = a;
    if (k + 1 < count) {
        b = value->sorted[k + 1];
        for (size_t i = k + 2; i < count; i++) {
            if (value->sorted[i] < b) b = value->sorted[i];
        }
    }
    return interpolate(a, b, place - whole);
}

static void look_start(Value *value) {
    value->count = value->distinct = 0;
    value->first = value->last = -1;
    exact_sum_clear(&value->sum);
    exact_squares_clear(&value->squares);
    value->low = INFINITY;
    value->high = -INFINITY;
    if (value->seen && !++value->serial) { /* the numbers of queries have come round */
        memset(value->seen, 0, ((size_t)value->codes + 1) * sizeof(uint32_t));
        value->serial = 1;
    }
}

/* Take in rows, from the newest back. */
static void look_at(Value *value, const uint32_t *rows, size_t count) {
    if (value->here) { /* only where the value is there */
        size_t kept = 0;
        for (size_t i = 0; i < count; i++) {
            value->present[kept] = rows[i];
            kept += value->here[rows[i]] != 0;
        }
        rows = value->present;
        count = kept;
    }
    if (!count) return;
    unsigned needs = value->needs;
    if (value->last < 0) value->last = (int64_t)rows[0];
    value->first = (int64_t)rows[count - 1];
    if (needs & SUMMED) {
        for (size_t i = 0; i < count; i++) {
            int place;
            int64_t sign;
            uint64_t integer = split(value, rows[i], &place, &sign);
            exact_sum_put(&value->sum, integer, place, sign);
            if (needs & BIT(STD)) exact_squares_put(&value->squares, integer, place, 0);
        }
    }
    if (needs & (BIT(MIN) | BIT(MAX))) {
        double low = value->low, high = value->high;
        for (size_t i = 0; i < count; i++) {
            double each = number(value, rows[i]);
            low = each < low ? each : low;
            high = each > high ? each : high;
        }
        value->low = low;
        value->high = high;
    }
    if (needs & BIT(QUANTILE)) {
        for (size_t i = 0; i < count; i++) value->picked[value->count + (int64_t)i] = number(value, rows[i]);
    }
    if (needs & BIT(N_UNIQUE)) {
        uint32_t serial = value->serial, distinct = 0;
        for (size_t i = 0; i < count; i++) {
            uint32_t *seen = value->seen + value->code[rows[i]];
            distinct += *seen != serial;
            *seen = serial;
        }
        value->distinct += distinct;
    }
    value->count += (int64_t)count;
}

static void look_tell(const Job *job, Feature *feature, size_t query, int64_t t) {
    Value *value = feature->value;
    int64_t since = before(t, job->widths[feature->width]);
    int fresh = value->last >= 0 && job->ev[value->last] >= since;
    switch (feature->function) {
    case COUNT: feature->integers[query] = value->count; return;
    case FIRST: feature->integers[query] = source_row(job, value->first); return;
    case LAST: feature->integers[query] = source_row(job, fresh ? value->last : -1); return;
    case N_UNIQUE: feature->integers[query] = value->distinct; return;
    case SINCE: feature->numbers[query] = fresh ? seconds(t, job->ev[value->last]) : NAN; return;
    default: break;
    }
    double result = NAN;
    if (value->count) {
        switch (feature->function) {
        case SUM: result = exact_sum_value(&value->sum); break;
        case MEAN: result = exact_mean(&value->sum, value->count); break;
        case STD: result = exact_deviation(&value->sum, &value->squares, value->count); break;
        case MIN: result = value->low + 0.0; break; /* + 0.0: zero has no sign */
        case MAX: result = value->high + 0.0; break;
        default: result = look_quantile(value, feature->q); break;
        }
    }
    feature->numbers[query] = result;
}

/* Have the memory ready that an answer goes to: queries of a group lie far apart. */
static inline void expect_answer(const Job *job, size_t query) {
    for (int place = 0; place < job->feature_count; place++) {
        const Feature *feature = job->features + place;
        if (feature->numbers) {
            __builtin_prefetch(feature->numbers + query, 1);
        } else {
            __builtin_prefetch(feature->integers + query, 1);
        }
    }
}

/* Answer the queries of a group by looking at rows. */
static void look(Job *job, size_t first_query, size_t last_query) {
    size_t reached = 0;
    for (size_t each = first_query; each < last_query; each++) {
        size_t query = job->query_order ? job->query_order[each] : each;
        int64_t t = job->t[query];
        expect_answer(job, query);
        while (reached < job->count && job->ev[reached] < t) reached++;
        for (int place = 0; place < job->value_count; place++) look_start(job->values + place);
        size_t row = reached;
        for (int width = 0; width < job->width_count; width++) {
            int64_t since = before(t, job->widths[width]);
            size_t visible = 0;
            for (; row && job->ev[row - 1] >= since; row--) {
                job->visible[visible] = (uint32_t)(row - 1);
                visible += (job->st[row - 1] < t) & (t <= job->en[row - 1]);
            }
            for (int place = 0; visible && place < job->value_count; place++)
                look_at(job->values + place, job->visible, visible);
            for (int place = job->feature_bounds[width]; place < job->feature_bounds[width + 1]; place++)
                look_tell(job, job->features + place, query, t);
        }
    }
}

/* The same where all features are about last rows: looks no further back than to those. Returns 1 when it gives up
 * because they lie too far back. */
static int look_newest(Job *job, size_t first_query, size_t last_query) {
    size_t reached = 0, steps = 0, most = 8 * (job->count + (last_query - first_query)) + 64;
    for (size_t each = first_query; each < last_query; each++) {
        size_t query = job->query_order ? job->query_order[each] : each;
        int64_t t = job->t[query], since = before(t, job->widths[job->width_count - 1]);
        while (reached < job->count && job->ev[reached] < t) reached++;
        for (int place = 0; place < job->value_count; place++) {
            Value *value = job->values + place;
            size_t row = reached;
            for (; row && job->ev[row - 1] >= since; row--) {
                if (job->st[row - 1] < t && t <= job->en[row - 1] && is_here(value, row - 1)) break;
            }
            steps += reached - row;
            value->last = row && job->ev[row - 1] >= since ? (int64_t)row - 1 : -1;
        }
        for (int place = 0; place < job->feature_count; place++) look_tell(job, job->features + place, query, t);
        if (steps > most && job->way == EITHER) return 1;
    }
    return 0;
}

/* Sweeping. */

static inline int64_t closes(const Job *job, size_t row, int64_t width) {
    int64_t leaves = after(job->ev[row], width);
    return leaves < job->en[row] ? leaves : job->en[row];
}

static int extreme_add(const Job *job, const Value *value, Extreme *extreme, size_t row, int64_t width, double sign) {
    double key = sign * number(value, row);
    if (job->late[row] || job->en[row] < after(job->ev[row], width))
        return heap_push(&extreme->heap, key, (uint32_t)row);
    while (extreme->tail > extreme->head && sign * number(value, extreme->rows[extreme->tail - 1]) >= key)
        extreme->tail--;
    extreme->rows[extreme->tail++] = (uint32_t)row;
    return 0;
}

static double extreme_at(const Job *job, const Value *value, Extreme *extreme, int64_t t, int64_t width, double sign) {
    double key = INFINITY;
    while (extreme->tail > extreme->head && after(job->ev[extreme->rows[extreme->head]], width) < t) extreme->head++;
    if (extreme->tail > extreme->head) key = sign * number(value, extreme->rows[extreme->head]);
    while (extreme->heap.size && closes(job, extreme->heap.entries[0].row, width) < t) heap_pop(&extreme->heap);
    if (extreme->heap.size && extreme->heap.entries[0].key < key) key = extreme->heap.entries[0].key;
    return sign * key + 0.0;
}

static int newest_add(const Job *job, Value *value, uint32_t row) {
    while (value->height) {
        uint32_t top = value->newest[value->height - 1];
        if (top > row) {
            /* Out of order: it never is the last if the one on top stays as long. */
            return job->en[top] >= job->en[row] ? 0 : heap_push(&value->lasts, -(double)row, row);
        }
        if (job->en[top] > job->en[row]) break;
        value->height--;
    }
    value->newest[value->height++] = row;
    return 0;
}

static int64_t newest_at(const Job *job, Value *value, int64_t t) {
    while (value->height && job->en[value->newest[value->height - 1]] < t) value->height--;
    while (value->lasts.size && job->en[value->lasts.entries[0].row] < t) heap_pop(&value->lasts);
    int64_t row = value->height ? (int64_t)value->newest[value->height - 1] : -1;
    if (value->lasts.size && (int64_t)value->lasts.entries[0].row > row) row = value->lasts.entries[0].row;
    return row;
}

/* The first row in the window, `opened` being the rows that have opened in order. */
static int64_t first_at(const Job *job, const Value *value, Cell *cell, size_t opened, int64_t t, int64_t width) {
    while (cell->front < opened &&
           (job->late[cell->front] || !is_here(value, cell->front) || closes(job, cell->front, width) < t))
        cell->front++;
    int64_t row = cell->front < opened ? (int64_t)cell->front : -1;
    while (cell->firsts.size && closes(job, cell->firsts.entries[0].row, width) < t) heap_pop(&cell->firsts);
    if (cell->firsts.size && (row < 0 || (int64_t)cell->firsts.entries[0].row < row))
        row = cell->firsts.entries[0].row;
    return row;
}

static void cell_sums(const Value *value, Cell *cell, size_t row, int64_t away) {
    int place;
    int64_t sign;
    uint64_t integer = split(value, row, &place, &sign);
    exact_sum_put(&cell->sum, integer, place, sign ^ away);
    if (cell->needs & BIT(STD)) exact_squares_put(&cell->squares, integer, place, away);
}

static int cell_add(const Job *job, const Value *value, Cell *cell, size_t row, int64_t width) {
    unsigned needs = cell->needs;
    cell->count++;
    cell->changes++;
    if (needs & SUMMED) cell_sums(value, cell, row, 0);
    if (needs & BIT(MIN) && extreme_add(job, value, &cell->low, row, width, 1.0)) return -1;
    if (needs & BIT(MAX) && extreme_add(job, value, &cell->high, row, width, -1.0)) return -1;
    if (needs & BIT(FIRST) && job->late[row] && heap_push(&cell->firsts, (double)row, (uint32_t)row)) return -1;
    if (needs & BIT(N_UNIQUE)) cell->distinct += !cell->counts[value->code[row]]++;
    if (needs & BIT(QUANTILE)) ranks_flip(&cell->ranks, value->rank[row], 1);
    return 0;
}

static void cell_remove(const Value *value, Cell *cell, size_t row) {
    unsigned needs = cell->needs;
    cell->count--;
    cell->changes++;
    if (needs & SUMMED) cell_sums(value, cell, row, -1);
    if (needs & BIT(N_UNIQUE)) cell->distinct -= !--cell->counts[value->code[row]];
    if (needs & BIT(QUANTILE)) ranks_flip(&cell->ranks, value->rank[row], UINT32_MAX);
}

static int open_row(Job *job, size_t row) {
    for (int place = 0; place < job->value_count; place++) {
        Value *value = job->values + place;
        if (!is_here(value, row)) continue;
        if (value->needs & NEWEST && newest_add(job, value, (uint32_t)row)) return -1;
        if (!(value->needs & ~NEWEST)) continue;
        for (int width = 0; width < job->width_count; width++) {
            Cell *cell = value->cells + width;
            if (cell->needs & ~NEWEST && job->opens[row] < closes(job, row, job->widths[width]) &&
                cell_add(job, value, cell, row, job->widths[width]))
                return -1;
        }
    }
    return 0;
}

static void close_row(Job *job, size_t row, int width) {
    for (int place = 0; place < job->value_count; place++) {
        Value *value = job->values + place;
        if (value->cells[width].needs & ~NEWEST && is_here(value, row)) cell_remove(value, value->cells + width, row);
    }
}

static double sweep_number(const Job *job, Feature *feature, Cell *cell, int64_t t, int64_t width) {
    Value *value = feature->value;
    switch (feature->function) {
    case SUM: return exact_sum_value(&cell->sum);
    case MEAN: return exact_mean(&cell->sum, cell->count);
    case STD: return exact_deviation(&cell->sum, &cell->squares, cell->count);
    case MIN: return extreme_at(job, value, &cell->low, t, width, 1.0);
    case MAX: return extreme_at(job, value, &cell->high, t, width, -1.0);
    default: break;
    }
    double place = (double)(cell->count - 1) * feature->q, whole = floor(place);
    uint32_t next, rank = ranks_find(&cell->ranks, (uint32_t)whole, &next);
    return interpolate(value->ranked[rank], value->ranked[next], place - whole);
}

static void sweep_tell(const Job *job, Feature *feature, size_t query, int64_t t, size_t opened) {
    Value *value = feature->value;
    int64_t width = job->widths[feature->width], row;
    Cell *cell = value->cells + feature->width;
    switch (feature->function) {
    case COUNT: feature->integers[query] = cell->count; return;
    case N_UNIQUE: feature->integers[query] = cell->distinct; return;
    case FIRST: feature->integers[query] = source_row(job, first_at(job, value, cell, opened, t, width)); return;
    case LAST:
    case SINCE:
        row = newest_at(job, value, t);
        if (row >= 0 && job->ev[row] < before(t, width)) row = -1;
        if (feature->function == LAST) {
            feature->integers[query] = source_row(job, row);
        } else {
            feature->numbers[query] = row < 0 ? NAN : seconds(t, job->ev[row]);
        }
        return;
    default: break;
    }
    if (feature->changes != cell->changes) { /* else the rows are those of the query before */
        feature->last_number = cell->count ? sweep_number(job, feature, cell, t, width) : NAN;
        feature->changes = cell->changes;
    }
    feature->numbers[query] = feature->last_number;
}

/* Make room for sweeping a group of job->count rows. */
static int sweep_room(Job *job) {
    size_t room = job->count ? job->count : 1;
    if (room <= job->swept_room) return 0;
    job->swept_room = 0;
#define GROW(pointer, count)                                              \
    do {                                                                  \
        void *more = realloc((pointer), (size_t)(count) * sizeof *(pointer)); \
        if (!more) return -1;                                             \
        (pointer) = more;                                                 \
    } while (0)
    GROW(job->opens, room);
    GROW(job->late, room);
    GROW(job->pairs, 2 * room);
    GROW(job->late_rows, room);
    GROW(job->enders, room);
    for (int place = 0; place < job->value_count; place++) {
        Value *value = job->values + place;
        if (value->needs & NEWEST) GROW(value->newest, room);
        if (value->needs & BIT(QUANTILE)) {
            GROW(value->rank, room);
            GROW(value->ranked, room);
        }
        for (int width = 0; width < job->width_count; width++) {
            Cell *cell = value->cells + width;
            if (cell->needs & BIT(MIN)) GROW(cell->low.rows, room);
            if (cell->needs & BIT(MAX)) GROW(cell->high.rows, room);
            if (cell->needs & BIT(N_UNIQUE)) GROW(cell->counts, room);
            if (cell->needs & BIT(QUANTILE)) {
                GROW(cell->ranks.bits, room / 64 + 1);
                GROW(cell->ranks.tree, room / 64 + 2);
            }
        }
    }
    job->swept_room = room;
    return 0;
}

/* Number the codes of a group from 0; `sweep_stop` takes back what is noted. */
static int localise(Value *value, size_t count) {
    if (!value->local) {
        value->local = malloc(((size_t)value->codes + 1) * sizeof(uint32_t));
        if (!value->local) return -1;
        memset(value->local, 255, ((size_t)value->codes + 1) * sizeof(uint32_t));
    }
    value->locals = 0;
    for (size_t row = 0; row < count; row++) {
        if (!is_here(value, row)) continue;
        uint32_t *local = value->local + value->own_code[row];
        if (*local == NONE) *local = value->locals++;
    }
    return 0;
}

static int sweep_start(Job *job) {
    if (sweep_room(job)) return -1;
    size_t count = job->count;
    int64_t widest = job->widths[job->width_count - 1], least = INT64_MAX;
    job->late_count = job->ender_count = 0;
    sort_pair *pairs = job->pairs, *spare = pairs + count;
    /* Rows that are never in a window are marked late and left out of the list of late ones: they never open. */
    for (size_t row = count; row--;) {
        int64_t opens = job->st[row] > job->ev[row] ? job->st[row] : job->ev[row];
        job->opens[row] = opens;
        int used = opens < closes(job, row, widest);
        job->late[row] = !used || opens > least;
        if (used && opens <= least) least = opens;
        if (used && job->late[row]) pairs[job->late_count++] = (sort_pair){sort_key(opens), (uint32_t)row};
    }
    sort_pairs(pairs, spare, job->late_count);
    for (size_t i = 0; i < job->late_count; i++) job->late_rows[i] = pairs[i].row;
    for (size_t row = 0; row < count; row++) {
        if (job->opens[row] < job->en[row] && job->en[row] < after(job->ev[row], widest))
            pairs[job->ender_count++] = (sort_pair){sort_key(job->en[row]), (uint32_t)row};
    }
    sort_pairs(pairs, spare, job->ender_count);
    for (size_t i = 0; i < job->ender_count; i++) job->enders[i] = pairs[i].row;
    for (int place = 0; place < job->value_count; place++) {
        Value *value = job->values + place;
        value->height = 0;
        value->lasts.size = 0;
        if (value->needs & BIT(N_UNIQUE)) {
            if (localise(value, count)) return -1;
            for (size_t row = 0; row < count; row++) {
                if (is_here(value, row)) value->own_code[row] = value->local[value->own_code[row]];
            }
        }
        uint32_t ranked = 0;
        if (value->needs & BIT(QUANTILE)) {
            for (size_t row = 0; row < count; row++) {
                if (is_here(value, row)) pairs[ranked++] = (sort_pair){sort_key_double(number(value, row)), (uint32_t)row};
            }
            sort_pairs(pairs, spare, ranked);
            for (uint32_t rank = 0; rank < ranked; rank++) {
                value->rank[pairs[rank].row] = rank;
                value->ranked[rank] = number(value, pairs[rank].row);
            }
        }
        for (int width = 0; width < job->width_count; width++) {
            Cell *cell = value->cells + width;
            cell->count = cell->distinct = cell->changes = 0;
            cell->front = cell->low.head = cell->low.tail = cell->high.head = cell->high.tail = 0;
            cell->low.heap.size = cell->high.heap.size = cell->firsts.size = 0;
            exact_sum_clear(&cell->sum);
            exact_squares_clear(&cell->squares);
            if (cell->needs & BIT(N_UNIQUE)) memset(cell->counts, 0, value->locals * sizeof(uint32_t));
            if (cell->needs & BIT(QUANTILE)) {
                Ranks *ranks = &cell->ranks;
                ranks->words = ranked / 64 + 1;
                for (ranks->step = 1; 2 * ranks->step <= ranks->words;) ranks->step *= 2;
                memset(ranks->bits, 0, (size_t)ranks->words * sizeof(uint64_t));
                memset(ranks->tree, 0, ((size_t)ranks->words + 1) * sizeof(uint32_t));
            }
        }
    }
    for (int place = 0; place < job->feature_count; place++) job->features[place].changes = -1;
    return 0;
}

/* Answer the queries of a group by sweeping over time. `places` has room for two numbers for each width. */
static int sweep(Job *job, size_t first_query, size_t last_query, size_t *places) {
    if (sweep_start(job)) return -1;
    size_t opened = 0, late = 0, *leaving = places, *ending = places + job->width_count;
    memset(places, 0, 2 * (size_t)job->width_count * sizeof *places);
    for (size_t each = first_query; each < last_query; each++) {
        size_t query = job->query_order ? job->query_order[each] : each;
        int64_t t = job->t[query];
        expect_answer(job, query);
        for (; opened < job->count && (job->late[opened] || job->opens[opened] < t); opened++) {
            if (!job->late[opened] && open_row(job, opened)) return -1;
        }
        for (; late < job->late_count && job->opens[job->late_rows[late]] < t; late++) {
            if (open_row(job, job->late_rows[late])) return -1;
        }
        for (int width = 0; width < job->width_count && !job->newest_only; width++) {
            int64_t length = job->widths[width];
            for (; leaving[width] < job->count; leaving[width]++) {
                size_t row = leaving[width];
                int64_t leaves = after(job->ev[row], length);
                if (leaves >= t) break;
                if (job->en[row] >= leaves && job->opens[row] < leaves) close_row(job, row, width);
            }
            for (; ending[width] < job->ender_count; ending[width]++) {
                size_t row = job->enders[ending[width]];
                int64_t end = job->en[row];
                if (end >= t) break;
                if (end < after(job->ev[row], length) && job->opens[row] < end) close_row(job, row, width);
            }
        }
        for (int place = 0; place < job->feature_count; place++)
            sweep_tell(job, job->features + place, query, t, opened);
    }
    return 0;
}

static void sweep_stop(Job *job) {
    for (int place = 0; place < job->value_count; place++) {
        Value *value = job->values + place;
        if (!value->local || !value->locals) continue;
        for (size_t row = 0; row < job->count; row++) {
            size_t source = (size_t)source_row(job, (int64_t)row);
            uint32_t code = value->all_codes[source];
            value->local[code < value->codes ? code : value->codes] = NONE;
        }
        value->locals = 0;
    }
}

/* Groups. */

/* The first of the places [low, high) whose row has an event time of `time` or later. */
static size_t search_event(const Job *job, size_t low, size_t high, int64_t time) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (job->event[job->order ? job->order[middle] : middle] < time) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Point to the times and values of the rows at places [base, base + count), or gather them. */
static int gather(Job *job, size_t base, size_t count) {
    job->base = base;
    job->count = count;
    if (count > job->room) {
        job->room = 0;
        GROW(job->visible, count);
        if (job->order) {
            GROW(job->own_ev, count);
            GROW(job->own_st, count);
            GROW(job->own_en, count);
        }
        for (int place = 0; place < job->value_count; place++) {
            Value *value = job->values + place;
            if (value->all_floats && job->order) GROW(value->own_floats, count);
            if (value->all_integers && job->order) GROW(value->own_integers, count);
            if (value->all_here && job->order) GROW(value->own_here, count);
            if (value->all_codes) GROW(value->own_code, count);
            if (value->all_here) GROW(value->present, count);
            if (value->needs & BIT(QUANTILE)) {
                GROW(value->picked, count);
                GROW(value->sorted, count);
            }
        }
        job->room = count;
    }
    const uint32_t *order = job->order ? job->order + base : NULL;
    if (order) {
        for (size_t row = 0; row < count; row++) job->own_ev[row] = job->event[order[row]];
        for (size_t row = 0; row < count; row++) job->own_st[row] = job->start[order[row]];
        for (size_t row = 0; row < count; row++) job->own_en[row] = job->end[order[row]];
        job->ev = job->own_ev;
        job->st = job->own_st;
        job->en = job->own_en;
    } else {
        job->ev = job->event + base;
        job->st = job->start + base;
        job->en = job->end + base;
    }
    for (int place = 0; place < job->value_count; place++) {
        Value *value = job->values + place;
#define POINT(to, own, all)                                                       \
    do {                                                                          \
        if (value->all && order) {                                                \
            for (size_t row = 0; row < count; row++) value->own[row] = value->all[order[row]]; \
        }                                                                         \
        value->to = !value->all ? NULL : order ? value->own : value->all + base;  \
    } while (0)
        POINT(floats, own_floats, all_floats);
        POINT(integers, own_integers, all_integers);
        POINT(here, own_here, all_here);
        if (value->all_codes) {
            for (size_t row = 0; row < count; row++) {
                uint32_t code = value->all_codes[order ? order[row] : base + row];
                value->own_code[row] = code < value->codes ? code : value->codes; /* there is room for one more */
            }
            value->code = value->own_code;
        }
    }
    return 0;
}

/* The rows that looking would look at, all queries together; stops counting beyond `most`. */
static size_t to_look_at(const Job *job, size_t first_query, size_t last_query, size_t most) {
    int64_t widest = job->widths[job->width_count - 1];
    size_t low = 0, high = 0, sum = 0;
    for (size_t each = first_query; each < last_query && sum <= most; each++) {
        int64_t t = job->t[job->query_order ? job->query_order[each] : each], since = before(t, widest);
        while (high < job->count && job->ev[high] < t) high++;
        while (low < high && job->ev[low] < since) low++;
        sum += high - low;
    }
    return sum;
}

/* Have the rows of a group ready that will be gathered, if they are few. */
static void expect_group(const Job *job, int64_t group) {
    int64_t low = job->bounds[group], high = job->bounds[group + 1];
    if (job->query_bounds[group] == job->query_bounds[group + 1] || high - low > 256) return;
    for (int64_t place = low; place < high; place++) {
        size_t row = job->order ? job->order[place] : (size_t)place;
        __builtin_prefetch(job->event + row);
        __builtin_prefetch(job->start + row);
        __builtin_prefetch(job->end + row);
        for (int each = 0; each < job->value_count; each++) {
            const Value *value = job->values + each;
            if (value->all_floats) __builtin_prefetch(value->all_floats + row);
            if (value->all_integers) __builtin_prefetch(value->all_integers + row);
            if (value->all_here) __builtin_prefetch(value->all_here + row);
            if (value->all_codes) __builtin_prefetch(value->all_codes + row);
        }
    }
}

static int answer_group(Job *job, int64_t group, size_t *places) {
    size_t first = (size_t)job->query_bounds[group], last = (size_t)job->query_bounds[group + 1];
    if (first == last) return 0;
    size_t low = (size_t)job->bounds[group], high = (size_t)job->bounds[group + 1];
    if (high - low > 64) { /* leave out what no window reaches */
        int64_t earliest = job->t[job->query_order ? job->query_order[first] : first];
        int64_t latest = job->t[job->query_order ? job->query_order[last - 1] : last - 1];
        high = search_event(job, low, high, latest);
        low = search_event(job, low, high, before(earliest, job->widths[job->width_count - 1]));
    }
    if (gather(job, low, high - low)) return -1;
    size_t few = 4 * (size_t)job->width_count * (job->count + (last - first));
    if (job->way != SWEEP && job->newest_only) {
        if (!look_newest(job, first, last)) return 0;
    } else if (job->way == LOOK || (job->way == EITHER && (job->count <= 32 || last - first == 1 ||
                                                            to_look_at(job, first, last, few) <= few))) {
        look(job, first, last);
        return 0;
    }
    int failed = sweep(job, first, last, places);
    sweep_stop(job);
    return failed;
}

static int answer(Job *job, int64_t first_group, int64_t last_group) {
    size_t *places = malloc(2 * (size_t)job->width_count * sizeof *places);
    int failed = !places;
    for (int64_t group = first_group; !failed && group < last_group; group++) {
        if (group + 1 < last_group) expect_group(job, group + 1);
        failed = answer_group(job, group, places);
    }
    free(places);
    return failed;
}

static void job_free(Job *job) {
    for (int place = 0; job->values && place < job->value_count; place++) {
        Value *value = job->values + place;
        free(value->own_floats);
        free(value->own_integers);
        free(value->own_here);
        free(value->own_code);
        free(value->picked);
        free(value->present);
        free(value->sorted);
        free(value->seen);
        free(value->newest);
        free(value->lasts.entries);
        free(value->local);
        free(value->rank);
        free(value->ranked);
        for (int width = 0; value->cells && width < job->width_count; width++) {
            Cell *cell = value->cells + width;
            free(cell->low.rows);
            free(cell->low.heap.entries);
            free(cell->high.rows);
            free(cell->high.heap.entries);
            free(cell->firsts.entries);
            free(cell->counts);
            free(cell->ranks.bits);
            free(cell->ranks.tree);
        }
        free(value->cells);
    }
    free(job->values);
    free(job->features);
    free(job->feature_bounds);
    free(job->widths);
    free(job->visible);
    free(job->own_ev);
    free(job->own_st);
    free(job->own_en);
    free(job->opens);
    free(job->late);
    free(job->pairs);
    free(job->late_rows);
    free(job->enders);
}

/* Python. */

/* Write where each group starts to bounds, and the rows of each one after the other to order, as they come. Returns 1
 * for a row of a group that does not exist. */
static int place_rows(const int64_t *group, int64_t groups, int64_t rows, uint32_t *order, int64_t *bounds) {
    memset(bounds, 0, ((size_t)groups + 1) * sizeof *bounds);
    for (int64_t row = 0; row < rows; row++) {
        if (group[row] >= groups || group[row] < -1) return 1;
        if (group[row] >= 0) bounds[group[row]]++;
    }
    int64_t sum = 0;
    for (int64_t each = 0; each <= groups; each++) { /* where each group starts … */
        int64_t size = bounds[each];
        bounds[each] = sum;
        sum += size;
    }
    for (int64_t row = 0; row < rows; row++) {
        /* A group that another thread changes meanwhile must not lead astray. */
        int64_t each = group[row];
        if (each >= 0 && each < groups && bounds[each] < rows) order[bounds[each]++] = (uint32_t)row;
    }
    for (int64_t each = groups; each > 0; each--) bounds[each] = bounds[each - 1]; /* … and again */
    bounds[0] = 0;
    return 0;
}

/* Whether rows come in order of times[1], times[2], … */
static int in_order(const int64_t *const *times, int keys, int64_t rows) {
    for (int64_t row = 1; row < rows; row++) {
        for (int key = 1; key < keys; key++) {
            if (times[key][row - 1] > times[key][row]) return 0;
            if (times[key][row - 1] < times[key][row]) break;
        }
    }
    return 1;
}

static PyObject *windows_order(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 5 || !PyTuple_Check(args[2]) || PyTuple_GET_SIZE(args[2]) < 1 ||
        PyTuple_GET_SIZE(args[2]) > 3) {
        PyErr_SetString(PyExc_TypeError, "order(group, groups, times, order, bounds), with one to three times");
        return NULL;
    }
    int64_t groups = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    Buffers buffers = {PyMem_Calloc(6, sizeof(Py_buffer)), 0, 6};
    if (!buffers.views) return PyErr_NoMemory();
    PyObject *result = NULL;
    Py_ssize_t rows = 0, keys = PyTuple_GET_SIZE(args[2]);
    const int64_t *times[3];
    const int64_t *group = take(&buffers, args[0], "group", INT64, 0, -1, &rows);
    if (!group) goto done;
    for (Py_ssize_t key = 0; key < keys; key++) {
        if (!(times[key] = take(&buffers, PyTuple_GET_ITEM(args[2], key), "times", INT64, 0, rows, NULL))) goto done;
    }
    uint32_t *order = take(&buffers, args[3], "order", UINT32, 1, rows, NULL);
    if (!order) goto done;
    if (groups < 0 || groups >= PY_SSIZE_T_MAX / 16 || rows >= (Py_ssize_t)UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a number of groups or rows that cannot be");
        goto done;
    }
    int64_t *bounds = take(&buffers, args[4], "bounds", INT64, 1, (Py_ssize_t)groups + 1, NULL);
    if (!bounds) goto done;
    int stray, memory = 0;
    sort_pair *spare = NULL;
    size_t room = 0;
    Py_BEGIN_ALLOW_THREADS;
    stray = place_rows(group, groups, rows, order, bounds);
    if (!stray) {
        /* Where all rows come in order of the later times, the first one is enough. */
        int some = in_order(times, (int)keys, rows) ? 1 : (int)keys;
        for (int64_t each = 0; each < groups && !memory; each++) {
            int64_t size = bounds[each + 1] - bounds[each];
            if (size > 1) memory = sort_rows(order + bounds[each], (size_t)size, times, some, &spare, &room);
        }
    }
    free(spare);
    Py_END_ALLOW_THREADS;
    if (stray) {
        PyErr_SetString(PyExc_ValueError, "a row lies in a group that does not exist");
    } else if (memory) {
        PyErr_NoMemory();
    } else {
        result = PyLong_FromLongLong(bounds[groups]);
    }
done:
    release(&buffers);
    return result;
}

static int take_value(Job *job, Buffers *buffers, PyObject *tuple, Value *value) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 4) {
        PyErr_SetString(PyExc_TypeError, "a value is a tuple (kind, data, present, codes)");
        return -1;
    }
    long kind = PyLong_AsLong(PyTuple_GET_ITEM(tuple, 0));
    long long codes = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, 3));
    if (PyErr_Occurred()) return -1;
    if (kind < PRESENCE || kind > CODES || codes < 0 || codes >= NONE) {
        PyErr_SetString(PyExc_ValueError, "a value of no kind, or of too many codes");
        return -1;
    }
    value->kind = (int)kind;
    value->codes = (uint32_t)codes;
    PyObject *data = PyTuple_GET_ITEM(tuple, 1), *present = PyTuple_GET_ITEM(tuple, 2);
    Py_ssize_t rows = (Py_ssize_t)job->rows;
    if (present != Py_None && !(value->all_here = take(buffers, present, "present", BOOL, 0, rows, NULL))) return -1;
    if (kind == FLOATS && !(value->all_floats = take(buffers, data, "value", FLOAT64, 0, rows, NULL))) return -1;
    if (kind == INTEGERS && !(value->all_integers = take(buffers, data, "value", INT64, 0, rows, NULL))) return -1;
    if (kind == CODES && !(value->all_codes = take(buffers, data, "value", UINT32, 0, rows, NULL))) return -1;
    exact_sum_init(&value->sum);
    exact_squares_init(&value->squares);
    value->cells = calloc((size_t)job->width_count, sizeof *value->cells);
    if (!value->cells) {
        PyErr_NoMemory();
        return -1;
    }
    for (int width = 0; width < job->width_count; width++) {
        exact_sum_init(&value->cells[width].sum);
        exact_squares_init(&value->cells[width].squares);
    }
    return 0;
}

static int take_feature(Job *job, Buffers *buffers, PyObject *tuple, Feature *feature) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 5) {
        PyErr_SetString(PyExc_TypeError, "a feature is a tuple (function, value, width, q, out)");
        return -1;
    }
    long function = PyLong_AsLong(PyTuple_GET_ITEM(tuple, 0)), place = PyLong_AsLong(PyTuple_GET_ITEM(tuple, 1));
    long width = PyLong_AsLong(PyTuple_GET_ITEM(tuple, 2));
    double q = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, 3));
    if (PyErr_Occurred()) return -1;
    if (function < 0 || function >= FUNCTIONS || place < 0 || place >= job->value_count || width < 0 ||
        width >= job->width_count || !(q >= 0.0 && q <= 1.0)) {
        PyErr_SetString(PyExc_ValueError, "a feature of no function, value or width, or a q outside [0, 1]");
        return -1;
    }
    Value *value = job->values + place;
    int numeric = BIT(function) & (SUMMED | BIT(MIN) | BIT(MAX) | BIT(QUANTILE));
    if ((numeric && value->kind != FLOATS && value->kind != INTEGERS) || (function == N_UNIQUE && value->kind != CODES)) {
        PyErr_SetString(PyExc_ValueError, "a function of a value of another kind");
        return -1;
    }
    feature->function = (int)function;
    feature->value = value;
    feature->width = (int)width;
    feature->q = q;
    value->needs |= BIT(function);
    value->cells[width].needs |= BIT(function);
    PyObject *out = PyTuple_GET_ITEM(tuple, 4);
    Py_ssize_t queries = (Py_ssize_t)job->queries;
    if (numeric || function == SINCE) {
        feature->numbers = take(buffers, out, "out", FLOAT64, 1, queries, NULL);
    } else {
        feature->integers = take(buffers, out, "out", INT64, 1, queries, NULL);
    }
    return feature->numbers || feature->integers ? 0 : -1;
}

/* Read the widths, values and features. */
static int take_program(Job *job, Buffers *buffers, PyObject *widths, PyObject *values, PyObject *features) {
    if (!PyTuple_Check(widths) || !PyTuple_Check(values) || !PyTuple_Check(features) || !PyTuple_GET_SIZE(widths)) {
        PyErr_SetString(PyExc_TypeError, "widths, values and features are tuples; there is a width");
        return -1;
    }
    if (PyTuple_GET_SIZE(widths) > 10000 || PyTuple_GET_SIZE(values) > 10000 || PyTuple_GET_SIZE(features) > 100000) {
        PyErr_SetString(PyExc_ValueError, "too many widths, values or features");
        return -1;
    }
    int width_count = (int)PyTuple_GET_SIZE(widths);
    int value_count = (int)PyTuple_GET_SIZE(values), feature_count = (int)PyTuple_GET_SIZE(features);
    job->widths = calloc((size_t)width_count, sizeof *job->widths);
    job->values = calloc((size_t)value_count + 1, sizeof *job->values);
    job->features = calloc((size_t)feature_count + 1, sizeof *job->features);
    job->feature_bounds = calloc((size_t)width_count + 1, sizeof *job->feature_bounds);
    if (!job->widths || !job->values || !job->features || !job->feature_bounds) {
        PyErr_NoMemory();
        return -1;
    }
    job->width_count = width_count;
    job->value_count = value_count;
    job->feature_count = feature_count;
    for (int i = 0; i < width_count; i++) {
        job->widths[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(widths, i));
        if (PyErr_Occurred()) return -1;
        if (job->widths[i] < 0 || (i && job->widths[i] <= job->widths[i - 1])) {
            PyErr_SetString(PyExc_ValueError, "widths must ascend from 0");
            return -1;
        }
    }
    for (int i = 0; i < value_count; i++) {
        if (take_value(job, buffers, PyTuple_GET_ITEM(values, i), job->values + i)) return -1;
    }
    job->newest_only = 1;
    for (int i = 0; i < feature_count; i++) {
        Feature *feature = job->features + i;
        if (take_feature(job, buffers, PyTuple_GET_ITEM(features, i), feature)) return -1;
        if (i && feature->width < feature[-1].width) {
            PyErr_SetString(PyExc_ValueError, "features must be in order of their width");
            return -1;
        }
        job->feature_bounds[feature->width + 1] = i + 1;
        job->newest_only &= (BIT(feature->function) & NEWEST) != 0;
    }
    for (int width = 0; width < width_count; width++) {
        if (job->feature_bounds[width + 1] < job->feature_bounds[width])
            job->feature_bounds[width + 1] = job->feature_bounds[width];
    }
    for (int i = 0; i < value_count; i++) {
        Value *value = job->values + i;
        if (!(value->needs & BIT(N_UNIQUE))) {
            value->all_codes = NULL;
        } else if (!(value->seen = calloc((size_t)value->codes + 1, sizeof(uint32_t)))) {
            PyErr_NoMemory();
            return -1;
        }
    }
    return 0;
}

static PyObject *windows_answer(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 14) {
        PyErr_SetString(
            PyExc_TypeError,
            "answer(order, bounds, event, start, end, query_order, query_bounds, t, widths, values, features, first, "
            "last, way)"
        );
        return NULL;
    }
    if (!PyTuple_Check(args[9]) || !PyTuple_Check(args[10])) {
        PyErr_SetString(PyExc_TypeError, "values and features are tuples");
        return NULL;
    }
    size_t room = 16 + 2 * (size_t)PyTuple_GET_SIZE(args[9]) + (size_t)PyTuple_GET_SIZE(args[10]);
    Buffers buffers = {PyMem_Calloc(room, sizeof(Py_buffer)), 0, room};
    if (!buffers.views) return PyErr_NoMemory();
    PyObject *result = NULL;
    Job job;
    memset(&job, 0, sizeof job);
    Py_ssize_t rows, places, queries, query_places, bounds, query_bounds;
    if (!(job.event = take(&buffers, args[2], "event", INT64, 0, -1, &rows))) goto done;
    if (!(job.start = take(&buffers, args[3], "start", INT64, 0, rows, NULL))) goto done;
    if (!(job.end = take(&buffers, args[4], "end", INT64, 0, rows, NULL))) goto done;
    if (!(job.t = take(&buffers, args[7], "t", INT64, 0, -1, &queries))) goto done;
    places = rows;
    query_places = queries;
    if (args[0] != Py_None && !(job.order = take(&buffers, args[0], "order", UINT32, 0, -1, &places))) goto done;
    if (args[5] != Py_None && !(job.query_order = take(&buffers, args[5], "query_order", UINT32, 0, -1, &query_places)))
        goto done;
    if (!(job.bounds = take(&buffers, args[1], "bounds", INT64, 0, -1, &bounds))) goto done;
    if (!(job.query_bounds = take(&buffers, args[6], "query_bounds", INT64, 0, -1, &query_bounds))) goto done;
    job.rows = (size_t)rows;
    job.queries = (size_t)queries;
    int64_t first = PyLong_AsLongLong(args[11]), last = PyLong_AsLongLong(args[12]);
    job.way = (int)PyLong_AsLong(args[13]);
    if (PyErr_Occurred()) goto done;
    if (bounds != query_bounds || first < 0 || last < first || last >= bounds || job.way < EITHER || job.way > SWEEP) {
        PyErr_SetString(PyExc_ValueError, "groups that do not exist, or bounds of different numbers of them");
        goto done;
    }
    if (!in_bounds(job.bounds, first, last, places, job.order, rows) ||
        !in_bounds(job.query_bounds, first, last, query_places, job.query_order, queries)) {
        PyErr_SetString(PyExc_ValueError, "bounds or an order that point outside");
        goto done;
    }
    if (take_program(&job, &buffers, args[8], args[9], args[10])) goto done;
    int failed;
    Py_BEGIN_ALLOW_THREADS;
    failed = answer(&job, first, last);
    Py_END_ALLOW_THREADS;
    if (failed) {
        PyErr_NoMemory();
    } else {
        result = Py_NewRef(Py_None);
    }
done:
    job_free(&job);
    release(&buffers);
    return result;
}

PyDoc_STRVAR(
    order_doc,
    "order(group, groups, times, order, bounds, /)\n--\n\n"
    "Sort rows by group (int64, -1 for none) and then by one to three times (int64); ties stay in order. Writes the rows\n"
    "to `order` (uint32, as many as rows) and where each group starts to `bounds` (int64, groups + 1); returns the\n"
    "number of rows that lie in a group."
);

PyDoc_STRVAR(
    answer_doc,
    "answer(order, bounds, event, start, end, query_order, query_bounds, t, widths, values, features, first, last, way)\n"
    "--\n\n"
    "Answer the queries of the groups first to last - 1. order, bounds: what `order` wrote (None: rows are sorted);\n"
    "likewise of queries. widths: ascending. values: (kind, data, present, codes), kind 0 for none, 1 for float64, 2 for\n"
    "int64, 3 for uint32 codes; present: bool, or None. features, in order of width: (function, value, width, q, out).\n"
    "way: 0, or 1 to look at rows, 2 to sweep over them."
);

static PyMethodDef methods[] = {
    {"order", (PyCFunction)(void (*)(void))windows_order, METH_FASTCALL, order_doc},
    {"answer", (PyCFunction)(void (*)(void))windows_answer, METH_FASTCALL, answer_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_windows", "Windows and last rows for many queries; see windows.c.", 0, methods, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__windows(void) { return PyModule_Create(&definition); }
