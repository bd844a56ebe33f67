/* Features of one group at one time, from the rows of its segments.
 *
 * engine/feature/layout.py says how rows lie in a segment, which is a block or the head. An answer is one pass over the
 * rows from the newest back for each value, which serves all its windows, since the rows of a shorter one end those of
 * a longer. A block that lies wholly inside a window and is wholly visible enters by its summary. Sums are exact
 * (exact.h), so the bits are those of kernels/exact.py however the rows are cut into blocks.
 *
 * Segments come from disk: every offset and length in a row or a summary is checked before it is used. That the rows
 * themselves are there was checked before. Nothing here knows Python: long groups are computed while others use it.
 */
#ifndef TIDEMILL_SEGMENTS_H
#define TIDEMILL_SEGMENTS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "exact.h"

#define FEW_PLACES 1024 /* of distinct values */

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

/* The first row whose time is not before `time`. Mostly all are, and one look tells. */
static int64_t bound(const plan *p, const segment *s, int64_t time) {
    int64_t low = 0, high = s->rows;
    if (high && load_i64(record(p, s, high - 1)) < time) return high;
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

static outcome read_cell(const slot *v, const segment *s, const char *row, cell *out) {
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

static void gathering(gathered *g) {
    memset(g, 0, sizeof *g);
    exact_sum_init(&g->sum);
    exact_squares_init(&g->squares);
}

/* Forget what was gathered. Memory is kept for what comes next, but not what only a large group needed. */
static void forget(gathered *g) {
    g->count = 0;
    g->least = INFINITY;
    g->greatest = -INFINITY;
    exact_sum_clear(&g->sum);
    exact_squares_clear(&g->squares);
    if (g->places > FEW_PLACES) {
        free(g->members);
        g->members = NULL;
        g->places = 0;
    } else if (g->distinct) {
        memset(g->members, 0, g->places * sizeof *g->members);
    }
    g->distinct = g->held = 0;
}

static void gathered_all(gathered *g) {
    free(g->members);
    free(g->values);
}

static inline void stretch(gathered *g, double least, double greatest) {
    g->least = least < g->least ? least : g->least;
    g->greatest = greatest > g->greatest ? greatest : g->greatest;
}

static outcome distinct(gathered *g, const segment *s, const char *row, const slot *v) {
    cell value;
    outcome read = read_cell(v, s, row, &value);
    if (read != FINE) return read;
    member one = {0, NULL, 0, 1};
    if (v->kind == 't') {
        one.bits = UINT64_C(0xcbf29ce484222325);
        for (int64_t i = 0; i < value.text.size; i++)
            one.bits = (one.bits ^ (unsigned char)value.text.data[i]) * UINT64_C(0x100000001b3);
        one.text = value.text.data;
        one.size = value.text.size;
    } else if (v->kind == 'f') {
        value.number = value.number == 0 ? 0.0 : value.number; /* zero has no sign */
        memcpy(&one.bits, &value.number, 8);
    } else {
        one.bits = (uint64_t)value.integer;
    }
    return note(g, &one);
}

/* Take in a visible row, of which `v` is the value (NULL: none). `scans`: bits of N_UNIQUE and QUANTILE. */
static inline outcome gather(gathered *g, const segment *s, const char *row, const slot *v, int scans) {
    if (!v) {
        g->count++;
        return FINE;
    }
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
        stretch(g, value, value);
    }
    g->count++;
    if (scans & 1 << N_UNIQUE) {
        outcome done = distinct(g, s, row, v);
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
    if (needs & NEEDS_EXTREMES) stretch(g, of.least, of.greatest);
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
    /* Copies, which the compiler knows that nothing written to *g can change. */
    const plan view = *p;
    const slot v = place < 0 ? (slot){0} : p->slot[place];
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
                const char *one = record(&view, here, row - 1);
                if (load_i64(one) < low) break;
                if (visible(&view, one, t)) {
                    outcome done = gather(g, here, one, place < 0 ? NULL : &v, scans);
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
        int64_t at = bound(p, here, forward ? low : t), end = forward ? here->rows : 0;
        while (at != end) {
            const char *one = record(p, here, forward ? at++ : --at);
            if (forward ? load_i64(one) >= t : load_i64(one) < low) return FINE;
            if (visible(p, one, t) && (place < 0 || there(&p->slot[place], one))) {
                *row = one;
                *of = here;
                return FINE;
            }
        }
    }
    return FINE;
}

/* `g` is what passes use, begun once for any number of groups. */
static outcome compute(const plan *p, const segment *s, int segments, int64_t t, gathered *g, cell *out) {
    outcome done = FINE;
    for (int first = 0, after; first < p->passed && done == FINE; first = after) {
        int place = p->feature[p->order[first]].slot;
        for (after = first + 1; after < p->passed && p->feature[p->order[after]].slot == place;) after++;
        done = pass(p, s, segments, t, g, p->order + first, after - first, out);
    }
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
        else done = read_cell(&p->slot[f->slot], of, row, to);
    }
    return done;
}

#endif
