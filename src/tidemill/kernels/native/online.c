/* Features of one group of online state at one time, straight from its packed versions.
 *
 * engine/feature/layout.py says how versions are packed: a head and blocks of records in order of (time, known, seq), a
 * directory that lists the blocks. A plan is made once for a view; an answer then is one pass over the rows from the
 * newest back for each value, which serves all its windows, since the rows of a shorter one end those of a longer.
 * A block that lies wholly inside a window and is wholly visible enters by its summary. Sums are exact (exact.h), so
 * the bits are those of kernels/exact.py however the rows are cut into blocks.
 *
 * Blobs come from disk: every count, offset and length in them is checked before it is used.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "exact.h"

#define CAPSULE "tidemill.kernels._online.plan"
#define MAX_FEATURES 65536
#define HEADER 8           /* of a head or block: rows, whether there is a directory */
#define TIMES 32           /* of a record: time, known, seq, end */
#define OPENING 32         /* of a directory: next number, blocks, fence */
#define ENTRY 72           /* a block in it */
#define MAX_ROWS (1 << 30) /* of a group's blocks, and of its head: less than exact.h takes */
#define LONG_ROWS 4096     /* rows from which on the interpreter is let go */

enum { COUNT, SUM, MEAN, SHARE, STD, MIN, MAX, N_UNIQUE, QUANTILE, FIRST, LAST, SINCE_LAST, LATEST, FUNCTIONS };
static const char *const NAMES[FUNCTIONS] = {
    "count", "sum", "mean", "share", "std", "min", "max", "n_unique", "quantile", "first", "last", "since_last", "latest",
};

/* What a summary holds of a value besides how many there are. */
enum { NEEDS_SUM = 1, NEEDS_SQUARES = 2, NEEDS_EXTREMES = 4 };

typedef struct {
    char kind; /* f float64, i int64, u uint64, b boolean, t text */
    int needs;
    uint32_t at, there; /* in a record: the number (t: where the text begins) and whether it is there (t: length) */
} slot;

typedef struct {
    int function, slot; /* slot -1: no value */
    int64_t width;      /* -1: no end to it */
    double share;       /* of a quantile */
    char kind;          /* of its value; 'i' for counts, 'f' for what is computed */
    int scans;          /* this one, or a wider one of the same slot, needs each value */
} feature;

typedef struct {
    int timeless, slots, features, passed;
    uint32_t stride;
    slot *slot;
    feature *feature;
    int *order; /* the first `passed` are those that a pass over the rows answers, by (slot, width); then the others */
} plan;

typedef struct {
    const char *data; /* NULL: not read */
    const char *texts;
    size_t text_size;
    int64_t rows;
    int listed; /* with the bounds that follow */
    int64_t first, last, opened, closes;
    const char *summary;
    size_t summary_size;
} segment;

typedef struct {
    int null;
    union {
        double number;
        int64_t integer;
        struct {
            const char *data;
            int64_t size;
        } text;
    };
} cell;

typedef enum { FINE, MEMORY, MALFORMED } outcome;

static inline int64_t load_i64(const char *at) {
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t load_u32(const char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline int32_t load_i32(const char *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline double load_f64(const char *at) {
    double value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Rows ---------------------------------------------------------------------------------------------------------- */

static inline const char *record(const plan *p, const segment *s, int64_t row) {
    return s->data + row * p->stride;
}

static inline int visible(const plan *p, const char *row, int64_t t) {
    return (p->timeless || load_i64(row + 8) < t) && t <= load_i64(row + 24);
}

static inline int there(const slot *v, const char *row) {
    return v->kind == 't' ? load_i32(row + v->there) >= 0 : row[v->there] != 0;
}

/* The first row whose time is not before `time`. */
static int64_t bound(const plan *p, const segment *s, int64_t time) {
    int64_t low = 0, high = s->rows;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (load_i64(record(p, s, middle)) < time) low = middle + 1;
        else high = middle;
    }
    return low;
}

static inline int64_t begin(const feature *f, int64_t t) {
    int64_t low;
    return f->width < 0 || __builtin_sub_overflow(t, f->width, &low) ? INT64_MIN : low;
}

/* Whether all rows of a listed block lie in the window and are visible. */
static inline int whole(const segment *s, int64_t low, int64_t t) {
    return s->listed && s->first >= low && s->last < t && s->opened < t && s->closes >= t;
}

static outcome read_cell(const plan *p, const segment *s, const char *row, int place, cell *out) {
    const slot *v = &p->slot[place];
    out->null = !there(v, row);
    if (out->null) return FINE;
    switch (v->kind) {
        case 'f': out->number = load_f64(row + v->at); break;
        case 'b': out->integer = row[v->at] != 0; break;
        case 't': {
            uint32_t at = load_u32(row + v->at);
            int64_t size = load_i32(row + v->there);
            if (at > s->text_size || (uint64_t)size > s->text_size - at) return MALFORMED;
            out->text.data = s->texts + at;
            out->text.size = size;
            break;
        }
        default: out->integer = load_i64(row + v->at);
    }
    return FINE;
}

/* Summaries: for each slot how many values are there, then what it needs: the least and the greatest, the digits of
 * the sum and of the sum of squares, each with the range of digits that is not zero. ------------------------------ */

typedef struct {
    uint32_t present;
    double least, greatest;
    uint16_t low[2], high[2];
    const char *digits[2];
} summary;

static int take(const char **at, const char *end, size_t size, const char **found) {
    if ((size_t)(end - *at) < size) return 0;
    *found = *at;
    *at += size;
    return 1;
}

/* Find slot `place` in a summary; 0 where it is malformed. */
static int read_summary(const plan *p, const segment *s, int place, summary *out) {
    const char *at = s->summary, *end = at + s->summary_size, *found;
    for (int i = 0; i <= place; i++) {
        if (!take(&at, end, 4, &found)) return 0;
        out->present = load_u32(found);
        if (out->present > s->rows) return 0;
        if (p->slot[i].needs & NEEDS_EXTREMES) {
            if (!take(&at, end, 16, &found)) return 0;
            out->least = load_f64(found);
            out->greatest = load_f64(found + 8);
        }
        for (int which = 0; which < 2; which++) {
            if (!(p->slot[i].needs & (which ? NEEDS_SQUARES : NEEDS_SUM))) continue;
            if (!take(&at, end, 4, &found)) return 0;
            memcpy(&out->low[which], found, 2);
            memcpy(&out->high[which], found + 2, 2);
            if (out->low[which] > out->high[which]) return 0;
            if (out->high[which] > (which ? EXACT_SQUARE_DIGITS : EXACT_SUM_DIGITS)) return 0;
            size_t size = 8 * (size_t)(out->high[which] - out->low[which]);
            if (!take(&at, end, size, &out->digits[which])) return 0;
        }
    }
    return 1;
}

static void add_digits(int64_t *digit, int32_t *low, int32_t *high, const summary *from, int which) {
    int first = from->low[which], after = from->high[which];
    if (first >= after) return;
    for (int i = first; i < after; i++) {
        /* Digits from disk may be any: wrap around rather than overflow. */
        digit[i] = (int64_t)((uint64_t)digit[i] + (uint64_t)load_i64(from->digits[which] + 8 * (i - first)));
    }
    if (first < *low) *low = first;
    if (after > *high) *high = after;
}

/* Gathering ------------------------------------------------------------------------------------------------------ */

typedef struct {
    uint64_t bits; /* the number, or the hash of the text */
    const char *text;
    int64_t size;
    int used;
} member;

typedef struct {
    int64_t count;
    double least, greatest;
    exact_sum sum;
    exact_squares squares;
    member *members; /* distinct values: a table of `places`, a power of two */
    size_t places, distinct;
    double *values; /* all values */
    size_t room, held;
} gathered;

static inline uint64_t mix(uint64_t bits) {
    bits ^= bits >> 32;
    bits *= UINT64_C(0xd6e8feb86659fd93);
    bits ^= bits >> 32;
    bits *= UINT64_C(0xd6e8feb86659fd93);
    return bits ^ bits >> 32;
}

static member *place_of(member *members, size_t places, const member *one) {
    for (size_t at = (size_t)mix(one->bits) & (places - 1);; at = (at + 1) & (places - 1)) {
        member *found = &members[at];
        if (!found->used) return found;
        if (found->bits == one->bits && found->size == one->size
            && (!one->size || !memcmp(found->text, one->text, (size_t)one->size)))
            return found;
    }
}

static outcome note(gathered *g, const member *one) {
    if (2 * (g->distinct + 1) > g->places) {
        size_t places = g->places ? 2 * g->places : 64;
        member *members = calloc(places, sizeof *members);
        if (!members) return MEMORY;
        for (size_t i = 0; i < g->places; i++)
            if (g->members[i].used) *place_of(members, places, &g->members[i]) = g->members[i];
        free(g->members);
        g->members = members;
        g->places = places;
    }
    member *found = place_of(g->members, g->places, one);
    if (!found->used) {
        *found = *one;
        g->distinct++;
    }
    return FINE;
}

static outcome keep(gathered *g, double value) {
    if (g->held == g->room) {
        size_t room = g->room ? 2 * g->room : 64;
        double *values = realloc(g->values, room * sizeof *values);
        if (!values) return MEMORY;
        g->values = values;
        g->room = room;
    }
    g->values[g->held++] = value;
    return FINE;
}

static void forget(gathered *g) {
    g->count = 0;
    exact_sum_clear(&g->sum);
    exact_squares_clear(&g->squares);
    if (g->distinct) memset(g->members, 0, g->places * sizeof *g->members);
    g->distinct = g->held = 0;
}

static inline void stretch(gathered *g, double least, double greatest, int64_t before) {
    if (!before || least < g->least) g->least = least;
    if (!before || greatest > g->greatest) g->greatest = greatest;
}

static outcome distinct(gathered *g, const plan *p, const segment *s, const char *row, int place) {
    cell value;
    outcome read = read_cell(p, s, row, place, &value);
    if (read != FINE) return read;
    member one = {0, NULL, 0, 1};
    if (p->slot[place].kind == 't') {
        one.bits = UINT64_C(0xcbf29ce484222325);
        for (int64_t i = 0; i < value.text.size; i++)
            one.bits = (one.bits ^ (unsigned char)value.text.data[i]) * UINT64_C(0x100000001b3);
        one.text = value.text.data;
        one.size = value.text.size;
    } else if (p->slot[place].kind == 'f') {
        value.number = value.number == 0 ? 0.0 : value.number; /* zero has no sign */
        memcpy(&one.bits, &value.number, 8);
    } else {
        one.bits = (uint64_t)value.integer;
    }
    return note(g, &one);
}

/* Take in the value of one visible row. `scans`: bits of N_UNIQUE and QUANTILE. */
static inline outcome gather(gathered *g, const plan *p, const segment *s, const char *row, int place, int scans) {
    if (place < 0) {
        g->count++;
        return FINE;
    }
    const slot *v = &p->slot[place];
    if (!there(v, row)) return FINE;
    if (v->needs) {
        double value;
        if (v->kind == 'f') {
            value = load_f64(row + v->at);
            if (!isfinite(value)) return MALFORMED; /* exact sums take finite numbers; what is not was stored as null */
            if (v->needs & NEEDS_SUM) exact_sum_add(&g->sum, value);
            if (v->needs & NEEDS_SQUARES) exact_squares_add(&g->squares, value);
        } else {
            int64_t integer = load_i64(row + v->at);
            value = (double)integer;
            if (v->needs & NEEDS_SUM) exact_sum_add_int(&g->sum, integer);
            if (v->needs & NEEDS_SQUARES) exact_squares_add_int(&g->squares, integer);
        }
        stretch(g, value, value, g->count);
    }
    g->count++;
    if (scans & 1 << N_UNIQUE) {
        outcome done = distinct(g, p, s, row, place);
        if (done != FINE) return done;
    }
    if (scans & 1 << QUANTILE) {
        double value = v->kind == 'f' ? load_f64(row + v->at) : (double)load_i64(row + v->at);
        return isfinite(value) ? keep(g, value) : MALFORMED;
    }
    return FINE;
}

static outcome gather_summary(gathered *g, const plan *p, const segment *s, int place) {
    if (place < 0) {
        g->count += s->rows;
        return FINE;
    }
    summary of;
    if (!read_summary(p, s, place, &of)) return MALFORMED;
    if (!of.present) return FINE;
    int needs = p->slot[place].needs;
    if (needs & NEEDS_SUM) add_digits(g->sum.digit, &g->sum.low, &g->sum.high, &of, 0);
    if (needs & NEEDS_SQUARES) add_digits(g->squares.digit, &g->squares.low, &g->squares.high, &of, 1);
    if (needs & NEEDS_EXTREMES) stretch(g, of.least, of.greatest, g->count);
    g->count += of.present;
    return FINE;
}

static int by_size(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

/* What lies at the place (n - 1) * share of the sorted values, between its neighbours in proportion: the steps of
 * numpy.quantile, but for a difference of the neighbours that overflows. Zero has no sign. */
static double quantile(gathered *g, double share) {
    qsort(g->values, g->held, sizeof *g->values, by_size);
    double place = (double)(g->held - 1) * share, whole = floor(place), part = place - whole;
    double a = g->values[(size_t)whole];
    if (part == 0) return a + 0.0;
    double b = g->values[(size_t)whole + 1], step = b - a;
    if (isinf(step)) return a * (1 - part) + b * part + 0.0;
    return (part < 0.5 ? a + step * part : b - step * (1 - part)) + 0.0;
}

/* Microseconds as seconds, correctly rounded. */
static double seconds(int64_t micros) {
    if (micros >= -((int64_t)1 << 53) && micros <= (int64_t)1 << 53) return (double)micros / 1e6;
    exact_sum sum;
    exact_sum_init(&sum);
    exact_sum_add_int(&sum, micros);
    return exact_mean(&sum, 1000000);
}

static void conclude(gathered *g, const feature *f, cell *out) {
    out->null = g->count == 0 && f->function != COUNT;
    if (out->null) return;
    switch (f->function) {
        case COUNT: out->integer = g->count; break;
        case SUM: out->number = exact_sum_value(&g->sum); break;
        case MEAN: case SHARE: out->number = exact_mean(&g->sum, g->count); break;
        case STD:
            out->null = g->count < 2;
            if (!out->null) out->number = exact_deviation(&g->sum, &g->squares, g->count);
            break;
        case MIN: out->number = g->least + 0.0; break;
        case MAX: out->number = g->greatest + 0.0; break;
        case N_UNIQUE: out->integer = (int64_t)g->distinct; break;
        default: out->number = quantile(g, f->share);
    }
}

/* Answer the features of one slot, `count` of them by width, in one pass over the rows from the newest back. */
static outcome pass(const plan *p, const segment *s, int segments, int64_t t, gathered *g, const int *order, int count,
                    cell *out) {
    int place = p->feature[order[0]].slot, at = segments - 1, scans = 0, inside = 0;
    int64_t row = 0;
    for (int i = 0; i < count; i++) {
        int function = p->feature[order[i]].function;
        if (function == N_UNIQUE || function == QUANTILE) scans |= 1 << function;
    }
    forget(g);
    for (int i = 0; i < count; i++) {
        const feature *f = &p->feature[order[i]];
        int64_t low = begin(f, t);
        for (; at >= 0; at--, inside = 0) {
            const segment *here = &s[at];
            if (!inside) {
                if (!here->rows || (here->listed && here->first >= t)) continue;
                if (here->listed && here->last < low) break;
                if (!f->scans && (place < 0 || here->summary) && whole(here, low, t)) {
                    outcome done = gather_summary(g, p, here, place);
                    if (done != FINE) return done;
                    continue;
                }
                if (!here->data) return MALFORMED;
                row = bound(p, here, t);
                inside = 1;
            }
            for (; row > 0; row--) {
                const char *one = record(p, here, row - 1);
                if (load_i64(one) < low) break;
                if (visible(p, one, t)) {
                    outcome done = gather(g, p, here, one, place, scans);
                    if (done != FINE) return done;
                }
            }
            if (row > 0) break;
        }
        conclude(g, f, &out[order[i]]);
    }
    return FINE;
}

/* Find the last visible row of the window, or the first, whose value `place` is there (-1: any row). */
static outcome find(const plan *p, const segment *s, int segments, int64_t t, int64_t low, int place, int forward,
                    const segment **of, const char **row) {
    *row = NULL;
    for (int i = 0; i < segments; i++) {
        const segment *here = &s[forward ? i : segments - 1 - i];
        if (!here->rows) continue;
        if (!here->data) {
            summary about;
            if (here->last < low || here->first >= t) continue;
            if (place < 0 || !here->summary || !read_summary(p, here, place, &about) || about.present) return MALFORMED;
            continue;
        }
        int64_t first = bound(p, here, low), after = bound(p, here, t);
        for (int64_t j = first; j < after; j++) {
            const char *one = record(p, here, forward ? j : after - 1 - (j - first));
            if (visible(p, one, t) && (place < 0 || there(&p->slot[place], one))) {
                *row = one;
                *of = here;
                return FINE;
            }
        }
        if (!forward && first > 0) return FINE;
        if (forward && after < here->rows) return FINE;
    }
    return FINE;
}

static outcome compute(const plan *p, const segment *s, int segments, int64_t t, cell *out) {
    gathered g;
    outcome done = FINE;
    memset(&g, 0, sizeof g);
    g.sum.low = EXACT_SUM_DIGITS;
    g.squares.low = EXACT_SQUARE_DIGITS;
    for (int first = 0, after; first < p->passed && done == FINE; first = after) {
        int place = p->feature[p->order[first]].slot;
        for (after = first + 1; after < p->passed && p->feature[p->order[after]].slot == place;) after++;
        done = pass(p, s, segments, t, &g, p->order + first, after - first, out);
    }
    free(g.members);
    free(g.values);
    const segment *of = NULL;
    const char *row = NULL;
    for (int i = p->passed; i < p->features && done == FINE; i++) {
        const feature *f = &p->feature[p->order[i]];
        cell *to = &out[p->order[i]];
        /* The columns of a Latest are all of one row. */
        if (f->function != LATEST || i == p->passed) {
            int place = f->function == LATEST ? -1 : f->slot;
            done = find(p, s, segments, t, begin(f, t), place, f->function == FIRST, &of, &row);
            if (done != FINE) break;
        }
        to->null = row == NULL;
        if (to->null) continue;
        if (f->function == SINCE_LAST) to->number = seconds((int64_t)((uint64_t)t - (uint64_t)load_i64(row)));
        else done = read_cell(p, of, row, f->slot, to);
    }
    return done;
}

/* Groups --------------------------------------------------------------------------------------------------------- */

/* A group as it lies in the store: the head, and where it has blocks their directory and those that are needed. */
typedef struct {
    segment *segments;
    char *needed;
    int count;
    int64_t loaded; /* rows in memory */
    Py_buffer *buffers;
    int held;
    segment alone; /* of a group without blocks, so that it takes no memory of its own */
    Py_buffer head;
} group;

static int malformed(const char *what) {
    PyErr_Format(PyExc_ValueError, "the %s is not one of this plan's view", what);
    return -1;
}

static int open_rows(const plan *p, const Py_buffer *from, const char *what, segment *s) {
    const char *data = from->buf;
    size_t size = (size_t)from->len;
    if (!size && !s->listed) return 0;
    if (size < HEADER) return malformed(what);
    uint64_t rows = load_u32(data);
    if (rows > (size - HEADER) / p->stride || rows > MAX_ROWS || (s->listed && rows != (uint64_t)s->rows))
        return malformed(what);
    s->rows = (int64_t)rows;
    s->data = data + HEADER;
    s->texts = s->data + rows * p->stride;
    s->text_size = size - HEADER - rows * p->stride;
    return 0;
}

/* Mark the listed blocks that must be read to answer at t. */
static void choose(const plan *p, const segment *s, int blocks, int64_t t, char *needed) {
    memset(needed, 0, (size_t)blocks);
    for (int i = 0; i < p->features; i++) {
        const feature *f = &p->feature[p->order[i]];
        int64_t low = begin(f, t);
        int forward = f->function == FIRST;
        for (int j = 0; j < blocks; j++) {
            int at = forward ? j : blocks - 1 - j;
            const segment *here = &s[at];
            if (!here->rows || here->first >= t || here->last < low) continue;
            if (!whole(here, low, t)) {
                needed[at] = 1;
                continue;
            }
            if (i < p->passed) {
                if (f->scans || (f->slot >= 0 && !here->summary)) needed[at] = 1;
                continue;
            }
            summary about;
            int any = f->function == LATEST || f->function == SINCE_LAST;
            if (!any && here->summary && read_summary(p, here, f->slot, &about) && !about.present) continue;
            needed[at] = 1;
            /* All of its rows are visible: the one looked for is here, unless all its values are null. */
            if (any || here->summary) break;
        }
    }
}

static void close_group(group *g) {
    for (int i = 0; i < g->held; i++) PyBuffer_Release(&g->buffers[i]);
    if (g->buffers != &g->head) PyMem_Free(g->buffers);
    if (g->segments != &g->alone) PyMem_Free(g->segments);
    PyMem_Free(g->needed);
    memset(g, 0, sizeof *g);
}

static int hold(group *g, PyObject *from) {
    if (PyObject_GetBuffer(from, &g->buffers[g->held], PyBUF_SIMPLE) < 0) return -1;
    g->held++;
    return 0;
}

/* List the blocks of a directory in g->segments, and which are needed at t. g->buffers[...] holds the directory. */
static int open_directory(const plan *p, int64_t t, const Py_buffer *directory, group *g) {
    const char *data = directory->buf;
    size_t size = (size_t)directory->len;
    if (size < OPENING) return malformed("directory");
    uint64_t blocks = load_u32(data + 4);
    if (blocks > (size - OPENING) / ENTRY || blocks > INT32_MAX / 2) return malformed("directory");
    g->count = (int)blocks + 1;
    g->segments = PyMem_Calloc(blocks + 1, sizeof(segment));
    g->needed = PyMem_Calloc(blocks + 1, 1);
    if (!g->segments || !g->needed) {
        PyErr_NoMemory();
        return -1;
    }
    int64_t all = 0;
    for (uint64_t i = 0; i < blocks; i++) {
        const char *entry = data + OPENING + i * ENTRY;
        segment *s = &g->segments[i];
        uint64_t at = load_u32(entry + 64), length = load_u32(entry + 68);
        if (at > size || length > size - at) return malformed("directory");
        s->listed = 1;
        s->rows = load_u32(entry + 4);
        all += s->rows;
        if (all > MAX_ROWS) return malformed("directory");
        s->first = load_i64(entry + 32);
        s->last = load_i64(entry + 40);
        s->opened = load_i64(entry + 48);
        s->closes = load_i64(entry + 56);
        s->summary = length ? data + at : NULL;
        s->summary_size = (size_t)length;
    }
    choose(p, g->segments, (int)blocks, t, g->needed);
    return 0;
}

/* Open head (bytes or None), directory (bytes or None) and the needed blocks (a tuple of bytes). */
static int open_group(const plan *p, int64_t t, PyObject *head, PyObject *directory, PyObject *blocks, group *g) {
    memset(g, 0, sizeof *g);
    if (directory == Py_None) {
        g->count = 1;
        g->segments = &g->alone;
        g->buffers = &g->head;
    } else {
        Py_ssize_t given = PyTuple_GET_SIZE(blocks);
        g->buffers = PyMem_Calloc((size_t)given + 2, sizeof(Py_buffer));
        if (!g->buffers) {
            PyErr_NoMemory();
            return -1;
        }
        if (hold(g, directory) < 0 || open_directory(p, t, &g->buffers[0], g) < 0) return -1;
        Py_ssize_t next = 0;
        for (int i = 0; i < g->count - 1; i++) {
            if (!g->needed[i]) continue;
            if (next >= given) return malformed("number of blocks");
            if (hold(g, PyTuple_GET_ITEM(blocks, next++)) < 0) return -1;
            if (open_rows(p, &g->buffers[g->held - 1], "block", &g->segments[i]) < 0) return -1;
            g->loaded += g->segments[i].rows;
        }
        if (next != given) return malformed("number of blocks");
    }
    if (head != Py_None) {
        if (hold(g, head) < 0 || open_rows(p, &g->buffers[g->held - 1], "head", &g->segments[g->count - 1]) < 0) return -1;
        g->loaded += g->segments[g->count - 1].rows;
    }
    return 0;
}

static int answer_group(const plan *p, int64_t t, const group *g, cell *out) {
    outcome done;
    if (g->loaded >= LONG_ROWS) {
        Py_BEGIN_ALLOW_THREADS
        done = compute(p, g->segments, g->count, t, out);
        Py_END_ALLOW_THREADS
    } else {
        done = compute(p, g->segments, g->count, t, out);
    }
    if (done == MEMORY) PyErr_NoMemory();
    if (done == MALFORMED) malformed("group");
    return done == FINE ? 0 : -1;
}

static PyObject *as_object(const plan *p, int place, const cell *value) {
    if (value->null) Py_RETURN_NONE;
    switch (p->feature[place].kind) {
        case 'f': return PyFloat_FromDouble(value->number);
        case 'b': return PyBool_FromLong(value->integer != 0);
        case 't': return PyUnicode_DecodeUTF8(value->text.data, (Py_ssize_t)value->text.size, "strict");
        case 'u': return PyLong_FromUnsignedLongLong((unsigned long long)value->integer);
        default: return PyLong_FromLongLong(value->integer);
    }
}

/* Plans ---------------------------------------------------------------------------------------------------------- */

static void free_plan(plan *p) {
    if (!p) return;
    PyMem_Free(p->slot);
    PyMem_Free(p->feature);
    PyMem_Free(p->order);
    PyMem_Free(p);
}

static void destroy_plan(PyObject *capsule) {
    free_plan(PyCapsule_GetPointer(capsule, CAPSULE));
}

static int read_slots(plan *p, PyObject *kinds) {
    Py_ssize_t size;
    const char *letters = PyUnicode_AsUTF8AndSize(kinds, &size);
    if (!letters) return -1;
    if (size > MAX_FEATURES) {
        PyErr_SetString(PyExc_ValueError, "too many values");
        return -1;
    }
    p->slots = (int)size;
    p->slot = PyMem_Calloc((size_t)size + 1, sizeof(slot));
    if (!p->slot) {
        PyErr_NoMemory();
        return -1;
    }
    p->stride = TIMES;
    for (int i = 0; i < p->slots; i++) {
        slot *v = &p->slot[i];
        v->kind = letters[i];
        v->at = p->stride;
        switch (v->kind) {
            case 'f': case 'i': case 'u': v->there = v->at + 8; p->stride += 9; break;
            case 'b': v->there = v->at + 1; p->stride += 2; break;
            case 't': v->there = v->at + 4; p->stride += 8; break;
            default:
                PyErr_SetString(PyExc_ValueError, "the kind of a value is one of f, i, u, b and t");
                return -1;
        }
    }
    return 0;
}

static int read_feature(plan *p, PyObject *item, feature *f) {
    const char *name;
    long long width;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a feature is a tuple (function, slot, width, share)");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "siLd", &name, &f->slot, &width, &f->share)) return -1;
    for (f->function = 0; f->function < FUNCTIONS && strcmp(name, NAMES[f->function]);) f->function++;
    if (f->function == FUNCTIONS) {
        PyErr_Format(PyExc_ValueError, "there is no function %s", name);
        return -1;
    }
    f->width = width;
    int valueless = f->function == COUNT || f->function == SINCE_LAST;
    if (valueless ? f->slot != -1 : f->slot < 0 || f->slot >= p->slots) {
        PyErr_Format(PyExc_ValueError, "%s of value %d", name, f->slot);
        return -1;
    }
    if (f->width < 0 && f->function != LATEST) {
        PyErr_SetString(PyExc_ValueError, "a window has a width");
        return -1;
    }
    char kind = f->slot < 0 ? 'i' : p->slot[f->slot].kind;
    int needs = 0;
    switch (f->function) {
        case SUM: case MEAN: case SHARE: needs = NEEDS_SUM; break;
        case STD: needs = NEEDS_SUM | NEEDS_SQUARES; break;
        case MIN: case MAX: needs = NEEDS_EXTREMES; break;
        default: break;
    }
    int numeric = needs || f->function == QUANTILE;
    if (numeric && kind != 'f' && kind != 'i') {
        PyErr_Format(PyExc_ValueError, "%s of a value that is no number", name);
        return -1;
    }
    if (f->function == QUANTILE && !(f->share >= 0 && f->share <= 1)) {
        PyErr_SetString(PyExc_ValueError, "a quantile lies between 0 and 1");
        return -1;
    }
    if (f->slot >= 0) p->slot[f->slot].needs |= needs;
    f->kind = f->function == COUNT || f->function == N_UNIQUE ? 'i' : numeric || f->function == SINCE_LAST ? 'f' : kind;
    return 0;
}

static int sort_features(plan *p) {
    p->order = PyMem_Calloc((size_t)p->features + 1, sizeof(int));
    if (!p->order) {
        PyErr_NoMemory();
        return -1;
    }
    for (int i = 0; i < p->features; i++)
        if (p->feature[i].function < FIRST) p->order[p->passed++] = i;
    for (int i = 0, next = p->passed; i < p->features; i++)
        if (p->feature[i].function >= FIRST) p->order[next++] = i;
    for (int i = 1; i < p->passed; i++) { /* by insertion: plans are short */
        int one = p->order[i], at = i;
        const feature *f = &p->feature[one];
        for (; at > 0; at--) {
            const feature *before = &p->feature[p->order[at - 1]];
            if (before->slot < f->slot || (before->slot == f->slot && before->width <= f->width)) break;
            p->order[at] = p->order[at - 1];
        }
        p->order[at] = one;
    }
    for (int i = p->passed - 1; i >= 0; i--) {
        feature *f = &p->feature[p->order[i]];
        const feature *wider = i + 1 < p->passed ? &p->feature[p->order[i + 1]] : NULL;
        f->scans = f->function == N_UNIQUE || f->function == QUANTILE || (wider && wider->slot == f->slot && wider->scans);
    }
    int latest = 0;
    for (int i = p->passed; i < p->features; i++) latest += p->feature[p->order[i]].function == LATEST;
    if (latest && latest != p->features) {
        PyErr_SetString(PyExc_ValueError, "latest stands alone");
        return -1;
    }
    for (int i = 1; i < latest; i++)
        if (p->feature[i].width != p->feature[0].width) {
            PyErr_SetString(PyExc_ValueError, "the columns of latest have one width");
            return -1;
        }
    return 0;
}

PyDoc_STRVAR(plan_doc,
             "plan(timeless, kinds, features, /)\n--\n\nMake a plan for a view. kinds: a letter for each value it reads "
             "(see layout.kind). features: (function, value or -1, width in microseconds or -1, share of a quantile).");

static PyObject *make_plan(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    if (count != 3 || !PyUnicode_Check(args[1]) || !PyTuple_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "plan takes a truth value, a text and a tuple");
        return NULL;
    }
    plan *p = PyMem_Calloc(1, sizeof *p);
    if (!p) return PyErr_NoMemory();
    p->timeless = PyObject_IsTrue(args[0]);
    if (p->timeless < 0 || read_slots(p, args[1]) < 0) goto failed;
    Py_ssize_t features = PyTuple_GET_SIZE(args[2]);
    if (features > MAX_FEATURES) {
        PyErr_SetString(PyExc_ValueError, "too many features");
        goto failed;
    }
    p->features = (int)features;
    p->feature = PyMem_Calloc((size_t)features + 1, sizeof(feature));
    if (!p->feature) {
        PyErr_NoMemory();
        goto failed;
    }
    for (int i = 0; i < p->features; i++)
        if (read_feature(p, PyTuple_GET_ITEM(args[2], i), &p->feature[i]) < 0) goto failed;
    if (sort_features(p) < 0) goto failed;
    PyObject *capsule = PyCapsule_New(p, CAPSULE, destroy_plan);
    if (capsule) return capsule;
failed:
    free_plan(p);
    return NULL;
}

static int read_asked(const char *name, PyObject *const *args, Py_ssize_t count, Py_ssize_t wanted, plan **p,
                      int64_t *t) {
    if (count != wanted) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd arguments", name, wanted);
        return -1;
    }
    *p = PyCapsule_GetPointer(args[0], CAPSULE);
    if (!*p) return -1;
    *t = PyLong_AsLongLong(args[1]);
    return *t == -1 && PyErr_Occurred() ? -1 : 0;
}

static int check_blocks(PyObject *blocks) {
    if (PyTuple_Check(blocks)) return 0;
    PyErr_SetString(PyExc_TypeError, "blocks come as a tuple");
    return -1;
}

/* Answers -------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(needs_doc,
             "needs(plan, t, directory, /)\n--\n\nReturn the numbers of the blocks that must be read to answer at t.");

static PyObject *list_needs(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    plan *p;
    int64_t t;
    group g = {0};
    Py_buffer directory;
    PyObject *numbers = NULL;
    if (read_asked("needs", args, count, 3, &p, &t) < 0) return NULL;
    if (PyObject_GetBuffer(args[2], &directory, PyBUF_SIMPLE) < 0) return NULL;
    if (open_directory(p, t, &directory, &g) == 0) {
        Py_ssize_t needed = 0;
        for (int i = 0; i < g.count - 1; i++) needed += g.needed[i];
        numbers = PyTuple_New(needed);
        for (int i = 0, next = 0; numbers && i < g.count - 1; i++) {
            if (!g.needed[i]) continue;
            PyObject *number = PyLong_FromUnsignedLong(load_u32((const char *)directory.buf + OPENING + (size_t)i * ENTRY));
            if (!number) Py_CLEAR(numbers);
            else PyTuple_SET_ITEM(numbers, next++, number);
        }
    }
    PyBuffer_Release(&directory);
    close_group(&g);
    return numbers;
}

PyDoc_STRVAR(answer_doc,
             "answer(plan, t, head, directory, blocks, /)\n--\n\nReturn the features of a group at t, as a tuple: "
             "floats, integers, truth values, texts and None. head and directory: bytes or None; blocks: the needed "
             "ones. Raises ValueError when they are not of the plan's view.");

static PyObject *answer(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    plan *p;
    int64_t t;
    group g = {0};
    cell few[64], *cells = few;
    PyObject *row = NULL;
    if (read_asked("answer", args, count, 5, &p, &t) < 0 || check_blocks(args[4]) < 0) return NULL;
    if (p->features > 64) cells = PyMem_Calloc((size_t)p->features, sizeof(cell));
    if (!cells) return PyErr_NoMemory();
    if (open_group(p, t, args[2], args[3], args[4], &g) == 0 && answer_group(p, t, &g, cells) == 0) {
        row = PyTuple_New(p->features);
        for (int i = 0; row && i < p->features; i++) {
            PyObject *value = as_object(p, i, &cells[i]);
            if (!value) Py_CLEAR(row);
            else PyTuple_SET_ITEM(row, i, value);
        }
    }
    close_group(&g);
    if (cells != few) PyMem_Free(cells);
    return row;
}

/* Columns are given away as an Arrow struct array through the C data interface: each column owns its buffers. ------ */

typedef struct arrow_schema {
    const char *format, *name, *metadata;
    int64_t flags, children_count;
    struct arrow_schema **children, *dictionary;
    void (*release)(struct arrow_schema *);
    void *owned;
} arrow_schema;

typedef struct arrow_array {
    int64_t length, null_count, offset, buffers_count, children_count;
    const void **buffers;
    struct arrow_array **children, *dictionary;
    void (*release)(struct arrow_array *);
    void *owned;
} arrow_array;

static void release_schema(arrow_schema *schema) {
    for (int64_t i = 0; i < schema->children_count; i++) {
        if (schema->children[i] && schema->children[i]->release) schema->children[i]->release(schema->children[i]);
        free(schema->children[i]);
    }
    free(schema->children);
    free(schema->owned);
    schema->release = NULL;
}

static void release_array(arrow_array *array) {
    for (int64_t i = 0; i < array->children_count; i++) {
        if (array->children[i] && array->children[i]->release) array->children[i]->release(array->children[i]);
        free(array->children[i]);
    }
    free(array->children);
    for (int64_t i = 0; i < array->buffers_count; i++) free((void *)array->buffers[i]);
    free(array->buffers);
    array->release = NULL;
}

static void drop_schema(PyObject *capsule) {
    arrow_schema *schema = PyCapsule_GetPointer(capsule, "arrow_schema");
    if (schema && schema->release) schema->release(schema);
    free(schema);
}

static void drop_array(PyObject *capsule) {
    arrow_array *array = PyCapsule_GetPointer(capsule, "arrow_array");
    if (array && array->release) array->release(array);
    free(array);
}

static arrow_schema *new_schema(const char *format, const char *name, int64_t children) {
    arrow_schema *schema = calloc(1, sizeof *schema);
    if (!schema) return NULL;
    schema->release = release_schema;
    schema->format = format;
    schema->flags = 2; /* may be null */
    schema->owned = strdup(name);
    schema->name = schema->owned;
    if (children) schema->children = calloc((size_t)children, sizeof *schema->children);
    if (schema->owned && (!children || schema->children)) {
        schema->children_count = children;
        return schema;
    }
    release_schema(schema);
    free(schema);
    return NULL;
}

static arrow_array *new_array(int64_t length, int64_t buffers, int64_t children) {
    arrow_array *array = calloc(1, sizeof *array);
    if (!array) return NULL;
    array->release = release_array;
    array->length = length;
    array->buffers = calloc((size_t)buffers, sizeof *array->buffers);
    if (children) array->children = calloc((size_t)children, sizeof *array->children);
    if (array->buffers && (!children || array->children)) {
        array->buffers_count = buffers;
        array->children_count = children;
        return array;
    }
    release_array(array);
    free(array);
    return NULL;
}

static inline void set_bit(void *bitmap, int64_t place) {
    ((unsigned char *)bitmap)[place >> 3] |= (unsigned char)(1 << (place & 7));
}

/* A column that is being filled: room is what there is for texts. */
typedef struct {
    arrow_array *array;
    char kind;
    int64_t room;
} column;

static int open_column(column *c, char kind, int64_t rows) {
    size_t bits = (size_t)(rows + 7) / 8 + 1, numbers = 8 * (size_t)(rows + 1);
    c->kind = kind;
    c->array = new_array(rows, kind == 't' ? 3 : 2, 0);
    if (!c->array) return -1;
    const void **buffers = c->array->buffers;
    buffers[0] = calloc(1, bits);
    buffers[1] = calloc(1, kind == 'b' ? bits : numbers);
    if (kind == 't') buffers[2] = malloc((size_t)(c->room = 16 * (rows + 1)));
    return buffers[0] && buffers[1] && (kind != 't' || buffers[2]) ? 0 : -1;
}

/* Texts are handed on as they are, so they must be what they are said to be. */
static int is_text(const char *data, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        if ((unsigned char)data[i] < 0x80) continue;
        PyObject *text = PyUnicode_DecodeUTF8(data, (Py_ssize_t)size, "strict");
        Py_XDECREF(text);
        return text != NULL;
    }
    return 1;
}

static int fill(column *c, int64_t row, const cell *value) {
    const void **buffers = c->array->buffers;
    int64_t *numbers = (int64_t *)buffers[1];
    if (value->null) c->array->null_count++;
    else set_bit((void *)buffers[0], row);
    switch (c->kind) {
        case 'f': if (!value->null) memcpy(numbers + row, &value->number, 8); break;
        case 'b': if (!value->null && value->integer) set_bit((void *)buffers[1], row); break;
        case 't': {
            int64_t used = numbers[row], size = value->null ? 0 : value->text.size;
            if (!value->null && !is_text(value->text.data, size)) return -1;
            if (size > c->room - used) {
                int64_t room = 2 * (used + size);
                void *larger = realloc((void *)buffers[2], (size_t)room);
                if (!larger) {
                    PyErr_NoMemory();
                    return -1;
                }
                buffers[2] = larger;
                c->room = room;
            }
            if (size) memcpy((char *)buffers[2] + used, value->text.data, (size_t)size);
            numbers[row + 1] = used + size;
            break;
        }
        default: if (!value->null) numbers[row] = value->integer;
    }
    return 0;
}

static int fill_columns(const plan *p, int64_t t, PyObject *groups, Py_ssize_t rows, column *columns, cell *cells) {
    for (Py_ssize_t row = 0; row < rows; row++) {
        PyObject *one = PyList_GET_ITEM(groups, row), *head = one, *directory = Py_None, *blocks = NULL;
        if (PyTuple_Check(one)) {
            if (PyTuple_GET_SIZE(one) != 3) {
                PyErr_SetString(PyExc_TypeError, "a group is a head, or (head, directory, blocks)");
                return -1;
            }
            head = PyTuple_GET_ITEM(one, 0);
            directory = PyTuple_GET_ITEM(one, 1);
            blocks = PyTuple_GET_ITEM(one, 2);
            if (check_blocks(blocks) < 0) return -1;
        }
        group g = {0};
        int done = open_group(p, t, head, directory, blocks, &g);
        if (done == 0) done = answer_group(p, t, &g, cells);
        for (int i = 0; done == 0 && i < p->features; i++) done = fill(&columns[i], row, &cells[i]);
        close_group(&g);
        if (done < 0) return -1;
    }
    return 0;
}

static const char *format_of(char kind) {
    switch (kind) {
        case 'f': return "g";
        case 'b': return "b";
        case 't': return "U";
        case 'u': return "L";
        default: return "l";
    }
}

PyDoc_STRVAR(columns_doc,
             "columns(plan, t, groups, names, /)\n--\n\nReturn the features of many groups at t: capsules of an Arrow "
             "schema and array, a struct of one column for each feature, under its name. A group is its head, or (head, "
             "directory, blocks).");

static PyObject *answer_columns(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    plan *p;
    int64_t t;
    if (read_asked("columns", args, count, 4, &p, &t) < 0) return NULL;
    if (!PyList_Check(args[2]) || !PyTuple_Check(args[3]) || PyTuple_GET_SIZE(args[3]) != p->features) {
        PyErr_SetString(PyExc_TypeError, "groups come as a list, names as a tuple of one for each feature");
        return NULL;
    }
    /* A copy, so that nobody changes it meanwhile: long groups let the interpreter go. */
    PyObject *groups = PyList_GetSlice(args[2], 0, PyList_GET_SIZE(args[2])), *given = NULL, *pair = NULL;
    if (!groups) return NULL;
    Py_ssize_t rows = PyList_GET_SIZE(groups);
    cell *cells = PyMem_Calloc((size_t)p->features + 1, sizeof(cell));
    column *columns = PyMem_Calloc((size_t)p->features + 1, sizeof(column));
    arrow_schema *schema = new_schema("+s", "", p->features);
    arrow_array *array = new_array(rows, 1, p->features);
    if (!cells || !columns || !schema || !array) {
        PyErr_NoMemory();
        goto done;
    }
    for (int i = 0; i < p->features; i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(args[3], i));
        if (!name) goto done;
        schema->children[i] = new_schema(format_of(p->feature[i].kind), name, 0);
        int opened = open_column(&columns[i], p->feature[i].kind, rows);
        array->children[i] = columns[i].array;
        if (!schema->children[i] || opened < 0) {
            PyErr_NoMemory();
            goto done;
        }
    }
    if (fill_columns(p, t, groups, rows, columns, cells) < 0) goto done;
    given = PyCapsule_New(schema, "arrow_schema", drop_schema);
    if (!given) goto done;
    schema = NULL;
    pair = PyCapsule_New(array, "arrow_array", drop_array);
    if (!pair) goto done;
    array = NULL;
    pair = Py_BuildValue("(ON)", given, pair); /* takes the capsule over */
done:
    Py_XDECREF(given);
    if (schema) release_schema(schema);
    if (array) release_array(array);
    free(schema);
    free(array);
    PyMem_Free(cells);
    PyMem_Free(columns);
    Py_DECREF(groups);
    return pair;
}

/* Shelves (engine/feature/shelf.py) --------------------------------------------------------------------------------------- */

static int fields_of(PyObject *record, size_t *fields) {
    if (!PyBytes_Check(record)) {
        PyErr_SetString(PyExc_TypeError, "a record is bytes, or None");
        return -1;
    }
    const char *data = PyBytes_AS_STRING(record);
    size_t size = (size_t)PyBytes_GET_SIZE(record), at;
    *fields = 0;
    if (!size) return 0;
    if (size >= 2) *fields = (size_t)(unsigned char)data[0] | (size_t)(unsigned char)data[1] << 8;
    at = 2 + *fields * 6;
    for (size_t i = 0; at <= size && i < *fields; i++) {
        size_t length = load_u32(data + 4 + i * 6);
        at = length > size - at ? size + 1 : at + length;
    }
    if (at == size) return 0;
    PyErr_SetString(PyExc_ValueError, "the record is malformed");
    return -1;
}

/* Return the head of the view `number` in a record of so many fields, or None; a new reference. */
static PyObject *head_of(PyObject *record, size_t fields, unsigned long number) {
    const char *data = PyBytes_AS_STRING(record), *at = data + 2 + fields * 6;
    for (size_t i = 0; i < fields; i++) {
        const char *entry = data + 2 + i * 6;
        size_t length = load_u32(entry + 2);
        if (((unsigned long)(unsigned char)entry[0] | (unsigned long)(unsigned char)entry[1] << 8) == number)
            return PyBytes_FromStringAndSize(at, (Py_ssize_t)length);
        at += length;
    }
    Py_RETURN_NONE;
}

static int read_number(PyObject *from, unsigned long *number) {
    *number = PyLong_AsUnsignedLong(from);
    return *number == (unsigned long)-1 && PyErr_Occurred() ? -1 : 0;
}

PyDoc_STRVAR(take_doc,
             "take(record, numbers, /)\n--\n\nReturn the heads of the views with these numbers, as a tuple; None where "
             "the record has none. Raises ValueError when it is not one.");

static PyObject *take_heads(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    size_t fields;
    if (count != 2 || !PyTuple_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "take takes a record and a tuple of numbers");
        return NULL;
    }
    if (fields_of(args[0], &fields) < 0) return NULL;
    Py_ssize_t wanted = PyTuple_GET_SIZE(args[1]);
    PyObject *heads = PyTuple_New(wanted);
    for (Py_ssize_t i = 0; heads && i < wanted; i++) {
        unsigned long number;
        PyObject *head = read_number(PyTuple_GET_ITEM(args[1], i), &number) < 0 ? NULL : head_of(args[0], fields, number);
        if (!head) Py_CLEAR(heads);
        else PyTuple_SET_ITEM(heads, i, head);
    }
    return heads;
}

PyDoc_STRVAR(take_all_doc,
             "take_all(records, number, /)\n--\n\nReturn the heads of one view in a list of records (bytes or None), as a "
             "list, and the places of those that have blocks. Raises as take.");

static PyObject *take_all(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    unsigned long number;
    if (count != 2 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "take_all takes a list of records and a number");
        return NULL;
    }
    if (read_number(args[1], &number) < 0) return NULL;
    Py_ssize_t many = PyList_GET_SIZE(args[0]);
    PyObject *heads = PyList_New(many), *listed = PyList_New(0);
    for (Py_ssize_t i = 0; heads && listed && i < many; i++) {
        PyObject *record = PyList_GET_ITEM(args[0], i), *head = NULL;
        size_t fields;
        if (record == Py_None) head = Py_NewRef(Py_None);
        else if (fields_of(record, &fields) == 0) head = head_of(record, fields, number);
        if (!head) {
            Py_CLEAR(heads);
            break;
        }
        PyList_SET_ITEM(heads, i, head);
        Py_ssize_t size = head == Py_None ? 0 : PyBytes_GET_SIZE(head);
        if (size && (size < 5 || PyBytes_AS_STRING(head)[4])) { /* the shortest are damaged, as will be found */
            PyObject *place = PyLong_FromSsize_t(i);
            if (!place || PyList_Append(listed, place) < 0) Py_CLEAR(listed);
            Py_XDECREF(place);
        }
    }
    PyObject *pair = heads && listed ? PyTuple_Pack(2, heads, listed) : NULL;
    Py_XDECREF(heads);
    Py_XDECREF(listed);
    return pair;
}

/* Making summaries ------------------------------------------------------------------------------------------------ */

static void put(char **to, const void *from, size_t size) {
    memcpy(*to, from, size);
    *to += size;
}

static void put_digits(char **to, const int64_t *digit, int32_t low, int32_t high) {
    if (low > high) low = high;
    uint16_t range[2] = {(uint16_t)low, (uint16_t)high};
    put(to, range, sizeof range);
    put(to, digit + low, 8 * (size_t)(high - low));
}

PyDoc_STRVAR(summary_doc, "summary(plan, block, /)\n--\n\nReturn the summary of a block for its directory.");

static PyObject *make_summary(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "summary takes a plan and a block");
        return NULL;
    }
    plan *p = PyCapsule_GetPointer(args[0], CAPSULE);
    Py_buffer block;
    if (!p || PyObject_GetBuffer(args[1], &block, PyBUF_SIMPLE) < 0) return NULL;
    segment s = {0};
    PyObject *made = NULL;
    gathered g;
    memset(&g, 0, sizeof g);
    g.sum.low = EXACT_SUM_DIGITS;
    g.squares.low = EXACT_SQUARE_DIGITS;
    size_t most = 4 + 16 + 4 + 8 * EXACT_SUM_DIGITS + 4 + 8 * EXACT_SQUARE_DIGITS;
    char *written = PyMem_Malloc(most * (size_t)p->slots + 1), *to = written;
    if (!written) PyErr_NoMemory();
    outcome done = FINE;
    if (written && open_rows(p, &block, "block", &s) == 0) {
        for (int i = 0; i < p->slots && done == FINE; i++) {
            const slot *v = &p->slot[i];
            forget(&g);
            for (int64_t row = 0; row < s.rows && done == FINE; row++) done = gather(&g, p, &s, record(p, &s, row), i, 0);
            uint32_t present = (uint32_t)g.count;
            put(&to, &present, 4);
            if (v->needs & NEEDS_EXTREMES) {
                double extremes[2] = {present ? g.least : 0.0, present ? g.greatest : 0.0};
                put(&to, extremes, 16);
            }
            if (v->needs & NEEDS_SUM) put_digits(&to, g.sum.digit, g.sum.low, g.sum.high);
            if (v->needs & NEEDS_SQUARES) put_digits(&to, g.squares.digit, g.squares.low, g.squares.high);
        }
        if (done == FINE) made = PyBytes_FromStringAndSize(written, to - written);
        else malformed("block");
    }
    PyMem_Free(written);
    PyBuffer_Release(&block);
    return made;
}

static PyMethodDef METHODS[] = {
    {"plan", (PyCFunction)(void (*)(void))make_plan, METH_FASTCALL, plan_doc},
    {"needs", (PyCFunction)(void (*)(void))list_needs, METH_FASTCALL, needs_doc},
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL, answer_doc},
    {"columns", (PyCFunction)(void (*)(void))answer_columns, METH_FASTCALL, columns_doc},
    {"take", (PyCFunction)(void (*)(void))take_heads, METH_FASTCALL, take_doc},
    {"take_all", (PyCFunction)(void (*)(void))take_all, METH_FASTCALL, take_all_doc},
    {"summary", (PyCFunction)(void (*)(void))make_summary, METH_FASTCALL, summary_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_online", "Features straight from packed versions (see online.py).", 0, METHODS, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__online(void) {
    return PyModule_Create(&MODULE);
}
