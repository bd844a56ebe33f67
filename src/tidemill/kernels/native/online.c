/* Features of groups of online state, straight from its packed versions.
 *
 * engine/feature/layout.py says how versions are packed: a head and blocks of records in order of (time, known, seq), a
 * directory that lists the blocks. A plan is made once for a view; segments.h answers by it, export.h takes the
 * answers for many groups.
 *
 * Blobs come from disk: every count, offset and length in them is checked before it is used.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "export.h"
#include "segments.h"

#define CAPSULE "tidemill.kernels._online.plan"
#define MAX_FEATURES 65536
#define HEADER 8           /* of a head or block: rows, whether there is a directory */
#define TIMES 32           /* of a record: time, known, seq, end */
#define OPENING 32         /* of a directory: next number, blocks, fence */
#define ENTRY 72           /* a block in it */
#define MAX_ROWS (1 << 30) /* of a group's blocks, and of its head: less than exact.h takes */
#define LONG_ROWS 4096     /* rows from which on the interpreter is let go */

/* Groups --------------------------------------------------------------------------------------------------------- */

/* Bytes of a store; no data: there are none. */
typedef struct {
    const char *data;
    size_t size;
} blob;

/* A group as it lies in the store: the head, and where it has blocks their directory and those that are needed. */
typedef struct {
    segment *segments;
    char *needed;
    int count;
    int64_t loaded; /* rows in memory */
    Py_buffer *buffers; /* of the directory and the blocks */
    int held;
    segment alone; /* of a group without blocks, so that it takes no memory of its own */
} group;

static inline blob bytes_of(const Py_buffer *buffer) {
    return (blob){buffer->buf, (size_t)buffer->len};
}

static int malformed(const char *what) {
    PyErr_Format(PyExc_ValueError, "the %s is not one of this plan's view", what);
    return -1;
}

static int open_rows(const plan *p, blob from, const char *what, segment *s) {
    const char *data = from.data;
    size_t size = from.size;
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
    PyMem_Free(g->buffers);
    if (g->segments != &g->alone) PyMem_Free(g->segments);
    PyMem_Free(g->needed);
}

static int hold(group *g, PyObject *from) {
    if (PyObject_GetBuffer(from, &g->buffers[g->held], PyBUF_SIMPLE) < 0) return -1;
    g->held++;
    return 0;
}

/* List the blocks of a directory in g->segments, and which are needed at t. */
static int open_directory(const plan *p, int64_t t, blob directory, group *g) {
    const char *data = directory.data;
    size_t size = directory.size;
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

/* Open a head, a directory (bytes or None) and the needed blocks (a tuple of bytes). */
static int open_group(const plan *p, int64_t t, blob head, PyObject *directory, PyObject *blocks, group *g) {
    g->segments = &g->alone;
    g->alone = (segment){0};
    g->needed = NULL;
    g->buffers = NULL;
    g->held = 0;
    g->count = 1;
    g->loaded = 0;
    if (directory != Py_None) {
        Py_ssize_t given = PyTuple_GET_SIZE(blocks);
        g->buffers = PyMem_Calloc((size_t)given + 1, sizeof(Py_buffer));
        if (!g->buffers) {
            PyErr_NoMemory();
            return -1;
        }
        if (hold(g, directory) < 0 || open_directory(p, t, bytes_of(&g->buffers[0]), g) < 0) return -1;
        Py_ssize_t next = 0;
        for (int i = 0; i < g->count - 1; i++) {
            if (!g->needed[i]) continue;
            if (next >= given) return malformed("number of blocks");
            if (hold(g, PyTuple_GET_ITEM(blocks, next++)) < 0) return -1;
            if (open_rows(p, bytes_of(&g->buffers[g->held - 1]), "block", &g->segments[i]) < 0) return -1;
            g->loaded += g->segments[i].rows;
        }
        if (next != given) return malformed("number of blocks");
    }
    segment *last = &g->segments[g->count - 1];
    if (open_rows(p, head, "head", last) < 0) return -1;
    g->loaded += last->rows;
    return 0;
}

static int answer_group(const plan *p, int64_t t, const group *g, gathered *with, cell *out) {
    outcome done;
    if (g->loaded >= LONG_ROWS) {
        Py_BEGIN_ALLOW_THREADS
        done = compute(p, g->segments, g->count, t, with, out);
        Py_END_ALLOW_THREADS
    } else {
        done = compute(p, g->segments, g->count, t, with, out);
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

/* Return the features of a group as a tuple. */
static PyObject *values_of(const plan *p, int64_t t, const group *g, gathered *with) {
    cell few[64], *cells = few;
    PyObject *values = NULL;
    if (p->features > 64) cells = PyMem_Calloc((size_t)p->features, sizeof(cell));
    if (!cells) return PyErr_NoMemory();
    if (answer_group(p, t, g, with, cells) == 0) values = PyTuple_New(p->features);
    for (int i = 0; values && i < p->features; i++) {
        PyObject *value = as_object(p, i, &cells[i]);
        if (!value) Py_CLEAR(values);
        else PyTuple_SET_ITEM(values, i, value);
    }
    if (cells != few) PyMem_Free(cells);
    return values;
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
    if (open_directory(p, t, bytes_of(&directory), &g) == 0) {
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
    group g;
    gathered with;
    Py_buffer head = {0};
    PyObject *values = NULL;
    if (read_asked("answer", args, count, 5, &p, &t) < 0 || check_blocks(args[4]) < 0) return NULL;
    if (args[2] != Py_None && PyObject_GetBuffer(args[2], &head, PyBUF_SIMPLE) < 0) return NULL;
    gathering(&with);
    if (open_group(p, t, bytes_of(&head), args[3], args[4], &g) == 0) values = values_of(p, t, &g, &with);
    gathered_all(&with);
    close_group(&g);
    if (head.obj) PyBuffer_Release(&head);
    return values;
}

/* Records of shelves (engine/feature/shelf.py) ---------------------------------------------------------------------- */

#define LISTING 2 /* of a record: how many fields there are */
#define FIELD 6   /* of a field: number of its view, length of its head */

static inline size_t load_u16(const char *at) {
    return (size_t)(unsigned char)at[0] | (size_t)(unsigned char)at[1] << 8;
}

/* Count the fields of a record, having checked that their heads end where it does. */
static int count_fields(blob record, size_t *fields) {
    *fields = 0;
    if (!record.size) return 0;
    if (record.size >= LISTING) *fields = load_u16(record.data);
    size_t at = LISTING + *fields * FIELD;
    for (size_t i = 0; at <= record.size && i < *fields; i++) {
        size_t length = load_u32(record.data + LISTING + i * FIELD + 2);
        at = length > record.size - at ? record.size + 1 : at + length;
    }
    if (at == record.size) return 0;
    PyErr_SetString(PyExc_ValueError, "the record is malformed");
    return -1;
}

/* Return the head of the view `number` in a record of so many fields. */
static blob head_of(blob record, size_t fields, unsigned long number) {
    if (!fields) return (blob){NULL, 0};
    const char *at = record.data + LISTING + fields * FIELD;
    for (size_t i = 0; i < fields; i++) {
        const char *field = record.data + LISTING + i * FIELD;
        size_t length = load_u32(field + 2);
        if (load_u16(field) == number) return (blob){at, length};
        at += length;
    }
    return (blob){NULL, 0};
}

/* A view that is asked: its head has this number in a record. */
typedef struct {
    const plan *plan;
    unsigned long number;
} asked;

static int read_view(PyObject *from, asked *view) {
    if (!PyTuple_Check(from) || PyTuple_GET_SIZE(from) != 2) {
        PyErr_SetString(PyExc_TypeError, "a view is a tuple (plan, number)");
        return -1;
    }
    view->plan = PyCapsule_GetPointer(PyTuple_GET_ITEM(from, 0), CAPSULE);
    if (!view->plan) return -1;
    view->number = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(from, 1));
    return view->number == (unsigned long)-1 && PyErr_Occurred() ? -1 : 0;
}

/* Whether the group with this head has blocks. What is too short to be one is found out when it is opened. */
static inline int has_directory(blob head) {
    return head.size >= HEADER && head.data[4];
}

/* Return the features of a view from its head; where they take more than that, the head. */
static PyObject *answer_head(const asked *view, int64_t t, blob head, gathered *with) {
    if (has_directory(head)) return PyBytes_FromStringAndSize(head.data, (Py_ssize_t)head.size);
    group g;
    if (open_group(view->plan, t, head, Py_None, NULL, &g) < 0) return NULL;
    return values_of(view->plan, t, &g, with);
}

PyDoc_STRVAR(answers_doc,
             "answers(views, t, record, /)\n--\n\nReturn the features of several views of a group at t, as a tuple of tuples; "
             "for a view of which the group has blocks, its head instead. views: (plan, number) of each; record: bytes "
             "in which the heads have these numbers, or None. Raises ValueError when it is not of the views.");

static PyObject *answer_record(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    if (count != 3 || !PyTuple_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "answers takes a tuple of views, a time and a record");
        return NULL;
    }
    int64_t t = PyLong_AsLongLong(args[1]);
    Py_buffer record = {0};
    size_t fields;
    gathered with;
    PyObject *answers = NULL;
    if (t == -1 && PyErr_Occurred()) return NULL;
    if (args[2] != Py_None && PyObject_GetBuffer(args[2], &record, PyBUF_SIMPLE) < 0) return NULL;
    gathering(&with);
    if (count_fields(bytes_of(&record), &fields) == 0) answers = PyTuple_New(PyTuple_GET_SIZE(args[0]));
    for (Py_ssize_t i = 0; answers && i < PyTuple_GET_SIZE(args[0]); i++) {
        asked view;
        PyObject *one = NULL;
        if (read_view(PyTuple_GET_ITEM(args[0], i), &view) == 0)
            one = answer_head(&view, t, head_of(bytes_of(&record), fields, view.number), &with);
        if (!one) Py_CLEAR(answers);
        else PyTuple_SET_ITEM(answers, i, one);
    }
    gathered_all(&with);
    if (record.obj) PyBuffer_Release(&record);
    return answers;
}

/* Columns ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    asked *views;
    int count, features; /* of views, of their features together */
    int64_t t;
    PyObject *fetch;
    Py_buffer *records;
    Py_ssize_t rows, held;
    cell *cells;
    column *columns;
    gathered with;
} question;

static int read_views(PyObject *views, question *q) {
    q->views = PyMem_Calloc((size_t)PyTuple_GET_SIZE(views) + 1, sizeof(asked));
    if (!q->views) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(views); i++) {
        if (read_view(PyTuple_GET_ITEM(views, i), &q->views[i]) < 0) return -1;
        q->features += q->views[i].plan->features;
        if (q->features > MAX_FEATURES) {
            PyErr_SetString(PyExc_ValueError, "too many features");
            return -1;
        }
        q->count++;
    }
    return 0;
}

/* Hold the records, so that they stay where they are: long groups let the interpreter go, and `fetch` is called. */
static int hold_records(PyObject *records, question *q) {
    q->rows = PyList_GET_SIZE(records);
    q->records = PyMem_Calloc((size_t)q->rows + 1, sizeof(Py_buffer));
    if (!q->records) {
        PyErr_NoMemory();
        return -1;
    }
    for (; q->held < q->rows; q->held++) {
        PyObject *record = PyList_GET_ITEM(records, q->held);
        if (record != Py_None && PyObject_GetBuffer(record, &q->records[q->held], PyBUF_SIMPLE) < 0) return -1;
    }
    return 0;
}

/* Answer view `i` of a row from its head, and from what lies in blocks. */
static int answer_view(question *q, Py_ssize_t row, int i, blob head) {
    PyObject *directory = Py_None, *blocks = NULL, *fetched = NULL;
    if (has_directory(head)) {
        fetched = PyObject_CallFunction(q->fetch, "in", i, row);
        if (!fetched) return -1;
        if (!PyTuple_Check(fetched) || PyTuple_GET_SIZE(fetched) != 2 || !PyTuple_Check(PyTuple_GET_ITEM(fetched, 1))) {
            PyErr_SetString(PyExc_TypeError, "what is fetched is a directory and a tuple of blocks");
            Py_DECREF(fetched);
            return -1;
        }
        directory = PyTuple_GET_ITEM(fetched, 0);
        blocks = PyTuple_GET_ITEM(fetched, 1);
    }
    group g;
    const plan *p = q->views[i].plan;
    int done = open_group(p, q->t, head, directory, blocks, &g);
    if (done == 0) done = answer_group(p, q->t, &g, &q->with, q->cells);
    close_group(&g);
    Py_XDECREF(fetched);
    return done;
}

/* A record comes from memory that was not used lately. Ask for it while the one before it is worked on: for a part of it
 * before each view, since a core waits when it has asked for a dozen lines. */
static inline void prefetch(blob record, size_t part, size_t parts) {
    size_t share = record.size / parts + 1, after = (part + 1) * share < record.size ? (part + 1) * share : record.size;
    for (size_t at = part * share; at < after; at += 64) __builtin_prefetch(record.data + at);
}

/* All views of a record are answered while it is at hand. */
static int fill_columns(question *q) {
    for (Py_ssize_t row = 0; row < q->rows; row++) {
        blob record = bytes_of(&q->records[row]), next = bytes_of(&q->records[row + 1]);
        size_t fields;
        if (count_fields(record, &fields) < 0) return -1;
        column *to = q->columns;
        for (int i = 0; i < q->count; i++) {
            prefetch(next, (size_t)i, (size_t)q->count);
            if (answer_view(q, row, i, head_of(record, fields, q->views[i].number)) < 0) return -1;
            for (int j = 0; j < q->views[i].plan->features; j++)
                if (fill(to++, row, &q->cells[j]) < 0) return -1;
        }
    }
    return 0;
}

static void close_question(question *q) {
    for (Py_ssize_t i = 0; i < q->held; i++)
        if (q->records[i].obj) PyBuffer_Release(&q->records[i]);
    PyMem_Free(q->records);
    PyMem_Free(q->views);
    PyMem_Free(q->cells);
    PyMem_Free(q->columns);
    gathered_all(&q->with);
}

PyDoc_STRVAR(columns_doc,
             "columns(views, t, records, fetch, names, /)\n--\n\nReturn the features of many groups at t: capsules of an "
             "Arrow schema and array, a struct of one column for each feature of each view, under its name. views: (plan, "
             "number) of each view; records: a list of bytes, or None, in which the heads have these numbers; fetch(view, "
             "row), by their places: is called for a group that has blocks, and returns its directory and the needed ones "
             "as a tuple. Raises ValueError when these are not of the views.");

static PyObject *answer_columns(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    if (count != 5 || !PyTuple_Check(args[0]) || !PyList_Check(args[2]) || !PyTuple_Check(args[4])) {
        PyErr_SetString(PyExc_TypeError, "columns takes a tuple of views, a time, a list, a function and a tuple of names");
        return NULL;
    }
    question q = {.t = PyLong_AsLongLong(args[1]), .fetch = args[3]};
    if (q.t == -1 && PyErr_Occurred()) return NULL;
    PyObject *names = args[4], *given = NULL, *pair = NULL;
    arrow_schema *schema = NULL;
    arrow_array *array = NULL;
    gathering(&q.with);
    if (read_views(args[0], &q) < 0 || hold_records(args[2], &q) < 0) goto done;
    if (PyTuple_GET_SIZE(names) != q.features) {
        PyErr_SetString(PyExc_TypeError, "there is one name for each feature");
        goto done;
    }
    q.cells = PyMem_Calloc((size_t)q.features + 1, sizeof(cell));
    q.columns = PyMem_Calloc((size_t)q.features + 1, sizeof(column));
    schema = new_schema("+s", "", q.features);
    array = new_array(q.rows, 1, q.features);
    if (!q.cells || !q.columns || !schema || !array) {
        PyErr_NoMemory();
        goto done;
    }
    for (int i = 0, at = 0; i < q.count; i++) {
        const plan *p = q.views[i].plan;
        for (int j = 0; j < p->features; j++, at++) {
            const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, at));
            if (!name) goto done;
            schema->children[at] = new_schema(format_of(p->feature[j].kind), name, 0);
            int opened = open_column(&q.columns[at], p->feature[j].kind, q.rows);
            array->children[at] = q.columns[at].array;
            if (!schema->children[at] || opened < 0) {
                PyErr_NoMemory();
                goto done;
            }
        }
    }
    if (fill_columns(&q) < 0) goto done;
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
    close_question(&q);
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
    gathering(&g);
    size_t most = 4 + 16 + 4 + 8 * EXACT_SUM_DIGITS + 4 + 8 * EXACT_SQUARE_DIGITS;
    char *written = PyMem_Malloc(most * (size_t)p->slots + 1), *to = written;
    if (!written) PyErr_NoMemory();
    outcome done = FINE;
    if (written && open_rows(p, bytes_of(&block), "block", &s) == 0) {
        for (int i = 0; i < p->slots && done == FINE; i++) {
            const slot *v = &p->slot[i];
            forget(&g);
            for (int64_t row = 0; row < s.rows && done == FINE; row++) done = gather(&g, &s, record(p, &s, row), v, 0);
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
    {"answers", (PyCFunction)(void (*)(void))answer_record, METH_FASTCALL, answers_doc},
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
