/* As-of joins: for each query, the last row of its group that is visible and recent enough: what latest.py computes.
 *
 * Queries are sorted by group and t, rows are not: they are read once, as they lie. A row with event time e that is
 * visible for start < t <= end opens at max(start, e). One that is never replaced is seen by all later queries of its
 * group, so that it is left with the first of them, if it is the last one there by (time, known, seq); afterwards each
 * query takes over what those before it have found. A row that is replaced is left with every query that sees it. Where
 * that comes to too many, the join is given up, and windows.c answers.
 *
 * A join of few questions with a large table so costs a pass over the table, and no order of it.
 */
#include "buffers.h"

#include <stdlib.h>

enum { AHEAD = 64 }; /* rows whose group and queries are on their way together */

#define NONE UINT32_MAX
#define FOREVER INT64_MAX

typedef struct {
    int64_t time;
    uint32_t row; /* NONE: nothing yet */
} Found;

typedef struct {
    const int64_t *group, *time, *known, *seq, *start, *end, *t;
    const uint32_t *query_order; /* NULL: queries are sorted */
    size_t rows, queries;        /* queries of the groups at hand */
    int64_t first, last, base, width;
    uint32_t *bounds; /* where the queries of group first + n start */
    int64_t *times;   /* of the queries, by group, ascending */
    Found *onwards;   /* rows that are never replaced, at the first query that sees them */
    Found *there;     /* rows that are replaced, at each query that sees them; NULL while there is none */
} Join;

/* Whether the row comes after what has been found, by (time, known, seq). */
static inline int comes_after(const Join *join, int64_t time, size_t row, const Found *found) {
    if (found->row == NONE || time != found->time) return found->row == NONE || time > found->time;
    if (join->known[row] != join->known[found->row]) return join->known[row] > join->known[found->row];
    if (join->seq[row] != join->seq[found->row]) return join->seq[row] > join->seq[found->row];
    return row > found->row;
}

static inline void leave(const Join *join, int64_t time, size_t row, Found *found) {
    if (comes_after(join, time, row, found)) *found = (Found){time, (uint32_t)row};
}

static inline int64_t opening(const Join *join, size_t row) {
    return join->start[row] > join->time[row] ? join->start[row] : join->time[row];
}

/* Whether a row of that time is recent enough for a query at t. */
static inline int reaches(const Join *join, int64_t time, int64_t t) {
    return join->width == FOREVER || t < INT64_MIN + join->width || time >= t - join->width;
}

/* The first place in [low, high) with a time after `time`, or high. Which way it goes cannot be foreseen: no branches. */
static inline size_t first_after(const int64_t *times, size_t low, size_t high, int64_t time) {
    size_t count = high - low;
    for (; count > 1; count -= count / 2) low += times[low + count / 2 - 1] <= time ? count / 2 : 0;
    return count && times[low] <= time ? low + 1 : low;
}

static Found *nothing_found(size_t queries) {
    Found *found = malloc((queries ? queries : 1) * sizeof *found);
    for (size_t each = 0; found && each < queries; each++) found[each] = (Found){0, NONE};
    return found;
}

/* Returns 1 when it would take too long, -1 when memory runs out. */
static int leave_rows(Join *join) {
    size_t steps = 0, most = 8 * (join->rows + join->queries) + 64;
    uint64_t groups = (uint64_t)(join->last - join->first);
    for (size_t start = 0; start < join->rows; start += AHEAD) {
        size_t past = join->rows - start < AHEAD ? join->rows : start + AHEAD, count = 0, kept = 0;
        struct {
            size_t row, low, high;
        } near[AHEAD];
        for (size_t row = start; row < past; row++) {
            /* Not those of other groups, or of none. A group that another thread changes must not lead astray. */
            uint64_t group = (uint64_t)join->group[row] - (uint64_t)join->first;
            if (group >= groups) continue;
            near[count].row = row;
            near[count++].low = group;
            __builtin_prefetch(join->bounds + group);
        }
        for (size_t each = 0; each < count; each++) {
            size_t group = near[each].low;
            size_t low = near[each].low = join->bounds[group], high = near[each].high = join->bounds[group + 1];
            __builtin_prefetch(join->times + low);
            __builtin_prefetch(join->times + (high > low ? high - 1 : low));
        }
        for (size_t each = 0; each < count; each++) { /* keep those that the first query after them may see */
            size_t row = near[each].row, high = near[each].high;
            int64_t opens = opening(join, row);
            size_t low = first_after(join->times, near[each].low, high, opens);
            near[kept].row = row;
            near[kept].low = low;
            near[kept].high = high;
            kept += low < high && opens < join->end[row] && reaches(join, join->time[row], join->times[low]);
            __builtin_prefetch(join->onwards + low, 1);
        }
        for (size_t each = 0; each < kept; each++) {
            size_t row = near[each].row, low = near[each].low;
            int64_t time = join->time[row], end = join->end[row];
            if (end == FOREVER) {
                leave(join, time, row, join->onwards + low);
                continue;
            }
            for (; low < near[each].high && join->times[low] <= end && reaches(join, time, join->times[low]); low++) {
                if (!join->there && !(join->there = nothing_found(join->queries))) return -1;
                leave(join, time, row, join->there + low);
                if (++steps > most) return 1;
            }
        }
    }
    return 0;
}

/* Write the row of each query, -1 for none. */
static void tell(const Join *join, int64_t *out) {
    for (uint32_t group = 0; group < (uint32_t)(join->last - join->first); group++) {
        Found last = {0, NONE};
        for (uint32_t each = join->bounds[group]; each < join->bounds[group + 1]; each++) {
            const Found *onwards = join->onwards + each;
            if (onwards->row != NONE) leave(join, onwards->time, onwards->row, &last);
            Found found = last;
            if (join->there && join->there[each].row != NONE) {
                leave(join, join->there[each].time, join->there[each].row, &found);
            }
            int fresh = found.row != NONE && reaches(join, found.time, join->times[each]);
            size_t place = (size_t)join->base + each;
            out[join->query_order ? join->query_order[place] : place] = fresh ? (int64_t)found.row : -1;
        }
    }
}

/* Returns 1 when it would take too long, -1 when memory runs out. */
static int answer(Join *join, const int64_t *query_bounds, int64_t *out) {
    size_t groups = (size_t)(join->last - join->first);
    join->bounds = malloc((groups + 1) * sizeof *join->bounds);
    join->times = malloc((join->queries ? join->queries : 1) * sizeof *join->times);
    join->onwards = nothing_found(join->queries);
    int failed = join->bounds && join->times && join->onwards ? 0 : -1;
    if (!failed) {
        for (size_t group = 0; group <= groups; group++) {
            join->bounds[group] = (uint32_t)(query_bounds[(size_t)join->first + group] - join->base);
        }
        for (size_t each = 0; each < join->queries; each++) {
            size_t place = (size_t)join->base + each;
            join->times[each] = join->t[join->query_order ? join->query_order[place] : place];
        }
        failed = leave_rows(join);
    }
    if (!failed) tell(join, out);
    free(join->bounds);
    free(join->times);
    free(join->onwards);
    free(join->there);
    return failed;
}

/* Python. */

static PyObject *asof_last(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 13) {
        PyErr_SetString(
            PyExc_TypeError,
            "last(group, time, known, seq, start, end, query_order, query_bounds, t, width, out, first, last)"
        );
        return NULL;
    }
    Join join = {0};
    join.width = PyLong_AsLongLong(args[9]);
    join.first = PyLong_AsLongLong(args[11]);
    join.last = PyLong_AsLongLong(args[12]);
    if (PyErr_Occurred()) return NULL;
    Buffers buffers = {PyMem_Calloc(10, sizeof(Py_buffer)), 0, 10};
    if (!buffers.views) return PyErr_NoMemory();
    PyObject *result = NULL;
    Py_ssize_t rows = 0, queries = 0, placed, groups;
    if (!(join.group = take(&buffers, args[0], "group", INT64, 0, -1, &rows))) goto done;
    const int64_t **columns[] = {&join.time, &join.known, &join.seq, &join.start, &join.end};
    static const char *const names[] = {"time", "known", "seq", "start", "end"};
    for (int each = 0; each < 5; each++) {
        if (!(*columns[each] = take(&buffers, args[1 + each], names[each], INT64, 0, rows, NULL))) goto done;
    }
    if (!(join.t = take(&buffers, args[8], "t", INT64, 0, -1, &queries))) goto done;
    placed = queries;
    if (args[6] != Py_None && !(join.query_order = take(&buffers, args[6], "query_order", UINT32, 0, -1, &placed)))
        goto done;
    const int64_t *query_bounds = take(&buffers, args[7], "query_bounds", INT64, 0, -1, &groups);
    if (!query_bounds) goto done;
    int64_t *out = take(&buffers, args[10], "out", INT64, 1, queries, NULL);
    if (!out) goto done;
    if (rows >= (Py_ssize_t)NONE || queries >= (Py_ssize_t)NONE || join.width < 0 || join.first < 0 ||
        join.last < join.first || join.last >= groups) {
        PyErr_SetString(PyExc_ValueError, "numbers of rows or groups, or a width, that cannot be");
        goto done;
    }
    if (!in_bounds(query_bounds, join.first, join.last, placed, join.query_order, queries)) {
        PyErr_SetString(PyExc_ValueError, "bounds or an order that point outside");
        goto done;
    }
    join.rows = (size_t)rows;
    join.base = query_bounds[join.first];
    join.queries = (size_t)(query_bounds[join.last] - join.base);
    int failed;
    Py_BEGIN_ALLOW_THREADS;
    failed = answer(&join, query_bounds, out);
    Py_END_ALLOW_THREADS;
    result = failed < 0 ? PyErr_NoMemory() : PyBool_FromLong(!failed);
done:
    release(&buffers);
    return result;
}

PyDoc_STRVAR(
    last_doc,
    "last(group, time, known, seq, start, end, query_order, query_bounds, t, width, out, first, last, /)\n--\n\n"
    "Write the last row that is visible at `t`, and not older than `width` microseconds, to `out` (int64, -1 for none)\n"
    "for the queries of the groups first to last - 1. query_order, query_bounds: queries by group and t, as `order` of\n"
    "windows.c writes them. Returns False, with nothing written, where many rows are replaced and it would take long."
);

static PyMethodDef methods[] = {
    {"last", (PyCFunction)(void (*)(void))asof_last, METH_FASTCALL, last_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_asof", "As-of joins; see asof.c.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__asof(void) { return PyModule_Create(&definition); }
