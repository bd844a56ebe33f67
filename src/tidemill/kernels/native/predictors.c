/* Runs a compiled predictor: one row by interleaved pointer walks, many rows in blocks, with the same bits.

   The program comes as arrays (see kernels/program.py, which documents them). Everything is checked once, when a
   Program is made; after that no input of row() or batch() can lead outside the arrays:
   - a node's children lie behind it, so every walk ends;
   - a code is checked against its column's size before it indexes a table or a bitset. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { IMPUTE = 1, ADD, SUB, MUL, DIV, CLIP, ISNAN, FLOAT32, ZERO_NAN, TRUNC, MATCH = 20, BINS, CHECK = 30, CHECK_CODE };
enum { IDENTITY = 0, EXPIT, SIGMOID32, SOFTMAX, SOFTMAX32, EXP, EXP32, OVR };
enum { REFUSE_NAN = 1, REFUSE_INF = 2 };
enum { LANES = 8, BLOCK = 64, MAX_FEATURES = 1 << 20, MAX_OUTPUTS = 1 << 16 };

typedef struct {
    int32_t code, src, offset, length;
} Op;

/* A step goes to left + (does the row go right?), and it does unless its feature is at most the threshold. So a NaN goes
   right; a split that sends it left looks at a copy of its feature where NaN is -inf. A leaf leads to itself: its
   feature is a constant 0, which is at most +inf. */
typedef struct {
    double threshold;
    uint32_t left, feature;
    uint32_t word;  /* a split on a code: where its bitset begins; else 0, a word of zeros */
    uint32_t value; /* of a leaf */
} Node;

typedef struct {
    PyObject_HEAD
    PyObject *names;        /* tuple of column names */
    PyObject **categories;  /* one dict (text -> code) for each category column, NULL for numbers */
    int32_t *place;         /* a column's slot or, for a category, its code */
    Py_ssize_t columns, numbers, slots, codes, features, width; /* width: of the scores of one row */
    int32_t *sizes;         /* values of each code, null among them */
    Op *ops;
    double *args;
    Py_ssize_t op_count;
    double *tables;
    Py_ssize_t table_length;
    double *base;
    /* linear */
    Py_ssize_t term_count, group_count;
    int32_t *terms, *groups; /* groups: code, offset of its table */
    double *weights;
    /* trees */
    Py_ssize_t tree_count, node_count, value_width;
    int32_t *roots, *outputs;
    Node *nodes;
    uint8_t *copied; /* slots of which a copy is looked at */
    uint32_t *bits;
    double *values;
    int has_codes, single, link;
    double divisor, scale;
} Program;

/* ---- Running ----------------------------------------------------------------------------------------------------- */

static inline Py_ssize_t match(const double *sorted, Py_ssize_t n, double x) {
    if (x != x)
        return n;
    Py_ssize_t low = 0, high = n;
    while (low < high) {
        Py_ssize_t middle = (low + high) / 2;
        if (sorted[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && sorted[low] == x ? low : n + 1;
}

static inline Py_ssize_t bin(const double *edges, Py_ssize_t n, double x) {
    if (x != x)
        return n + 1;
    Py_ssize_t low = 0, high = n;
    while (low < high) {
        Py_ssize_t middle = (low + high) / 2;
        if (x < edges[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

#define EACH for (Py_ssize_t r = 0; r < rows; r++)

/* Compiled for wider vectors, too, and the widest that the processor has is taken: the same operations on each value in
   the same order, and none contracted, so the same bits. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

/* Run the operations on `rows` rows whose values lie `stride` apart in each feature. Returns -1, or the index of the
   check that a row failed. */
static inline __attribute__((always_inline)) Py_ssize_t
prepare(const Program *p, double *x, int32_t *c, Py_ssize_t rows, Py_ssize_t stride) {
    /* What is computed follows what is read, in the order of the operations. */
    Py_ssize_t slot = p->numbers, code = p->slots + p->columns - p->numbers;
    for (Py_ssize_t i = 0; i < p->op_count; i++) {
        const Op op = p->ops[i];
        const double a = p->args[2 * i], b = p->args[2 * i + 1];
        const double *restrict from = x + op.src * stride;
        double *restrict to = x + slot * stride;
        switch (op.code) {
        case IMPUTE: EACH to[r] = from[r] != from[r] ? a : from[r]; break;
        case ADD: EACH to[r] = from[r] + a; break;
        case SUB: EACH to[r] = from[r] - a; break;
        case MUL: EACH to[r] = from[r] * a; break;
        case DIV: EACH to[r] = from[r] / a; break;
        case CLIP: EACH to[r] = from[r] < a ? a : from[r] > b ? b : from[r]; break;
        case ISNAN: EACH to[r] = from[r] != from[r] ? 1.0 : 0.0; break;
        case FLOAT32: EACH to[r] = (double)(float)from[r]; break;
        case ZERO_NAN: EACH to[r] = fabs(from[r]) <= a ? (double)NAN : from[r]; break;
        case TRUNC: EACH to[r] = trunc(from[r]); break;
        case MATCH:
            EACH c[code * stride + r] = (int32_t)match(p->tables + op.offset, op.length, from[r]);
            code++;
            continue;
        case BINS:
            EACH c[code * stride + r] = (int32_t)bin(p->tables + op.offset, op.length, from[r]);
            code++;
            continue;
        case CHECK: { /* over all rows first and without a branch, for whole vectors of them */
            const int64_t nan = op.length & REFUSE_NAN ? -1 : 0, inf = op.length & REFUSE_INF ? -1 : 0;
            int64_t wrong = 0;
            EACH {
                const double v = from[r];
                wrong |= (v != v ? nan : 0) | (fabs(v) == HUGE_VAL ? inf : 0);
            }
            if (wrong)
                return i;
            continue;
        }
        case CHECK_CODE:
            EACH if (p->tables[op.length + c[(p->slots + op.src) * stride + r]] != 0.0) return i;
            continue;
        }
        slot++;
    }
    for (Py_ssize_t i = 0; p->copied != NULL && i < p->slots; i++)
        if (p->copied[i]) {
            const double *restrict from = x + i * stride;
            double *restrict to = x + (p->slots + p->codes + 1 + i) * stride;
            EACH to[r] = from[r] != from[r] ? -HUGE_VAL : from[r];
        }
    return -1;
}

/* Each score adds its terms up in their order, whether rows come one by one or, as here, term by term in vectors. */
static inline __attribute__((always_inline)) void
linear(const Program *p, const double *x, const int32_t *c, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t k,
       double *restrict out) {
    for (Py_ssize_t i = 0; i < rows * k; i++)
        out[i] = 0.0;
    for (Py_ssize_t t = 0; t < p->term_count; t++) {
        const double *restrict from = x + p->terms[t] * stride, *restrict w = p->weights + t * k;
        EACH for (Py_ssize_t j = 0; j < k; j++) out[r * k + j] += from[r] * w[j];
    }
    for (Py_ssize_t g = 0; g < p->group_count; g++) {
        const int32_t *restrict code = c + (p->slots + p->groups[2 * g]) * stride;
        const double *restrict table = p->tables + p->groups[2 * g + 1];
        EACH for (Py_ssize_t j = 0; j < k; j++) out[r * k + j] += table[code[r] * k + j];
    }
    EACH for (Py_ssize_t j = 0; j < k; j++) out[r * k + j] += p->base[j];
}

/* Walk LANES pairs of (node, row) to their leaves at once, so that the waits for memory overlap. Lane j is of the row
   that lies j * step behind the first in x and c. */
static inline __attribute__((always_inline)) void
walk(const Program *p, uint32_t at[LANES], const double *x, const int32_t *c, Py_ssize_t stride, Py_ssize_t step,
     int has_codes) {
    const Node *nodes = p->nodes;
    uint32_t moved;
    do {
        moved = 0;
        for (int j = 0; j < LANES; j++) {
            const Node *n = nodes + at[j];
            const Py_ssize_t cell = (Py_ssize_t)n->feature * stride + j * step;
            const double v = x[cell];
            uint32_t right = !(v <= n->threshold);
            if (has_codes) {
                const uint32_t code = (uint32_t)c[cell];
                right |= (p->bits[n->word + (code >> 5)] >> (code & 31)) & 1u;
            }
            const uint32_t next = n->left + right;
            moved |= next ^ at[j];
            at[j] = next;
        }
    } while (moved);
}

static inline void add(const Program *p, Py_ssize_t tree, uint32_t leaf, double *to) {
    const double *v = p->values + (Py_ssize_t)p->nodes[leaf].value * p->value_width;
    to += p->outputs[tree];
    /* float32 sums: a double holds the sum of two floats well enough that rounding it is rounding the true sum. */
    if (p->single)
        for (Py_ssize_t j = 0; j < p->value_width; j++)
            to[j] = (double)(float)(to[j] + v[j]);
    else
        for (Py_ssize_t j = 0; j < p->value_width; j++)
            to[j] += v[j];
}

static inline __attribute__((always_inline)) void
trees_of_row(const Program *p, const double *x, const int32_t *c, double *to, int has_codes) {
    for (Py_ssize_t t = 0; t < p->tree_count; t += LANES) {
        uint32_t at[LANES];
        for (int j = 0; j < LANES; j++)
            at[j] = (uint32_t)p->roots[t + j < p->tree_count ? t + j : p->tree_count - 1];
        walk(p, at, x, c, 1, 0, has_codes);
        for (int j = 0; j < LANES && t + j < p->tree_count; j++)
            add(p, t + j, at[j], to);
    }
}

/* The rows of a block end with whole lanes: what lies behind the last is of an earlier block, or zero, and no answer. */
static inline __attribute__((always_inline)) void
trees_of_block(const Program *p, const double *x, const int32_t *c, Py_ssize_t rows, double *out, int has_codes) {
    for (Py_ssize_t t = 0; t < p->tree_count; t++)
        for (Py_ssize_t first = 0; first < rows; first += LANES) {
            uint32_t at[LANES];
            for (int j = 0; j < LANES; j++)
                at[j] = (uint32_t)p->roots[t];
            walk(p, at, x + first, c + first, BLOCK, 1, has_codes);
            for (int j = 0; j < LANES && first + j < rows; j++)
                add(p, t, at[j], out + (first + j) * p->width);
        }
}

static double sigmoid32(double x) {
    const float negative = (float)-x;
    const float e = expf(negative > 88.7f ? 88.7f : negative); /* NaN stays NaN */
    return (double)(1.0f / (e + 1.0f + 1e-16f));
}

static void finish(const Program *p, double *y) {
    const Py_ssize_t k = p->width;
    if (p->divisor != 0.0)
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] /= p->divisor;
    switch (p->link) {
    case EXPIT:
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] = 1.0 / (1.0 + exp(-(p->scale * y[j])));
        break;
    case SIGMOID32:
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] = sigmoid32(y[j]);
        break;
    case EXP:
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] = exp(y[j]);
        break;
    case EXP32:
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] = (double)expf((float)y[j]);
        break;
    case SOFTMAX: {
        double top = y[0], sum = 0.0;
        for (Py_ssize_t j = 1; j < k; j++)
            top = y[j] > top ? y[j] : top;
        for (Py_ssize_t j = 0; j < k; j++)
            sum += y[j] = exp(y[j] - top);
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] /= sum;
        break;
    }
    case SOFTMAX32: { /* the sum is kept in float64 and used as float32, as XGBoost does */
        float top = (float)y[0];
        double sum = 0.0;
        for (Py_ssize_t j = 1; j < k; j++)
            top = fmaxf((float)y[j], top);
        for (Py_ssize_t j = 0; j < k; j++)
            sum += y[j] = (double)expf((float)y[j] - top);
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] = (double)((float)y[j] / (float)sum);
        break;
    }
    case OVR: { /* each class against the rest, then their shares; all zero is uniform */
        double sum = 0.0;
        for (Py_ssize_t j = 0; j < k; j++)
            sum += y[j] = 1.0 / (1.0 + exp(-y[j]));
        for (Py_ssize_t j = 0; j < k; j++)
            y[j] = sum == 0.0 ? 1.0 / (double)k : y[j] / sum;
        break;
    }
    default: break;
    }
}

static Py_ssize_t run_row(const Program *p, double *x, int32_t *c, double *y) {
    const Py_ssize_t failed = prepare(p, x, c, 1, 1);
    if (failed >= 0)
        return failed;
    if (p->nodes == NULL)
        linear(p, x, c, 1, 1, p->width, y);
    else {
        memcpy(y, p->base, (size_t)p->width * sizeof(double));
        if (p->has_codes)
            trees_of_row(p, x, c, y, 1);
        else
            trees_of_row(p, x, c, y, 0);
    }
    finish(p, y);
    return -1;
}

static WIDE Py_ssize_t prepare_block(const Program *p, double *x, int32_t *c, Py_ssize_t rows) {
    return prepare(p, x, c, rows, BLOCK);
}

static WIDE void linear_block(const Program *p, const double *x, const int32_t *c, Py_ssize_t rows, double *out) {
    if (p->width == 1)
        linear(p, x, c, rows, BLOCK, 1, out);
    else
        linear(p, x, c, rows, BLOCK, p->width, out);
}

static Py_ssize_t run_block(const Program *p, double *x, int32_t *c, Py_ssize_t rows, double *out) {
    const Py_ssize_t failed = prepare_block(p, x, c, rows);
    if (failed >= 0)
        return failed;
    if (p->nodes == NULL)
        linear_block(p, x, c, rows, out);
    else {
        for (Py_ssize_t r = 0; r < rows; r++)
            memcpy(out + r * p->width, p->base, (size_t)p->width * sizeof(double));
        if (p->has_codes)
            trees_of_block(p, x, c, rows, out, 1);
        else
            trees_of_block(p, x, c, rows, out, 0);
    }
    for (Py_ssize_t r = 0; r < rows; r++)
        finish(p, out + r * p->width);
    return -1;
}

static PyObject *refused(const Program *p, Py_ssize_t failed) {
    const Op op = p->ops[failed];
    PyObject *name = PyTuple_GET_ITEM(p->names, op.offset);
    if (op.code == CHECK_CODE)
        return PyErr_Format(PyExc_ValueError, "Column %R holds a value that the model has not learned.", name);
    return PyErr_Format(PyExc_ValueError, "Column %R holds a value that the model does not take: %s.", name,
                        op.length == REFUSE_INF ? "too large or infinite" : "null, too large or infinite");
}

/* ---- From Python ------------------------------------------------------------------------------------------------- */

static int read_number(PyObject *value, double *to, PyObject *name) {
    if (PyFloat_Check(value))
        *to = PyFloat_AS_DOUBLE(value);
    else if (value == Py_None)
        *to = (double)NAN;
    else if (PyLong_Check(value)) {
        *to = PyLong_AsDouble(value);
        if (*to == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "Column %R holds a whole number beyond float64.", name);
            return -1;
        }
    } else {
        PyErr_Format(PyExc_ValueError, "Column %R takes a number, not %.80s.", name, Py_TYPE(value)->tp_name);
        return -1;
    }
    return 0;
}

static int read_category(PyObject *value, PyObject *codes, int32_t *to, int32_t null, PyObject *name) {
    if (value == Py_None) {
        *to = null;
        return 0;
    }
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_ValueError, "Column %R takes text, not %.80s.", name, Py_TYPE(value)->tp_name);
        return -1;
    }
    PyObject *found = PyDict_GetItemWithError(codes, value);
    if (found == NULL && PyErr_Occurred())
        return -1;
    *to = found == NULL ? null : (int32_t)PyLong_AsLong(found);
    return 0;
}

static PyObject *Program_row(Program *p, PyObject *values) {
    if (!PyList_CheckExact(values) && !PyTuple_CheckExact(values)) {
        PyErr_SetString(PyExc_TypeError, "a row is a list or a tuple");
        return NULL;
    }
    if (PySequence_Fast_GET_SIZE(values) != p->columns)
        return PyErr_Format(PyExc_ValueError, "A row has %zd values; this one has %zd.", p->columns,
                            PySequence_Fast_GET_SIZE(values));
    double few_x[256], few_y[16];
    int32_t few_c[256];
    const int small = p->features <= 256 && p->width <= 16;
    char *many = NULL;
    double *x = few_x, *y = few_y;
    int32_t *c = few_c;
    if (!small) {
        const size_t f = (size_t)p->features, w = (size_t)p->width;
        many = PyMem_Malloc((f + w) * sizeof(double) + f * sizeof(int32_t));
        if (many == NULL)
            return PyErr_NoMemory();
        x = (double *)many, y = x + f, c = (int32_t *)(y + w);
    }
    for (Py_ssize_t i = 0; i < p->features; i++)
        c[i] = 0;
    for (Py_ssize_t i = p->slots; i < p->slots + p->codes + 1; i++)
        x[i] = 0.0;
    PyObject *made = NULL;
    for (Py_ssize_t i = 0; i < p->columns; i++) {
        PyObject *value = PySequence_Fast_GET_ITEM(values, i), *name = PyTuple_GET_ITEM(p->names, i);
        const int32_t at = p->place[i];
        if (p->categories[i] == NULL
                ? read_number(value, x + at, name)
                : read_category(value, p->categories[i], c + p->slots + at, p->sizes[at] - 1, name))
            goto done;
    }
    const Py_ssize_t failed = run_row(p, x, c, y);
    if (failed >= 0)
        refused(p, failed);
    else if (p->width == 1)
        made = PyFloat_FromDouble(y[0]);
    else {
        made = PyList_New(p->width);
        for (Py_ssize_t j = 0; made != NULL && j < p->width; j++) {
            PyObject *each = PyFloat_FromDouble(y[j]);
            if (each == NULL)
                Py_CLEAR(made);
            else
                PyList_SET_ITEM(made, j, each);
        }
    }
done:
    PyMem_Free(many);
    return made;
}

/* Fill `view` with `object`'s contiguous buffer of `count` items of the native type `format`. */
static int buffer(PyObject *object, Py_buffer *view, char format, Py_ssize_t size, Py_ssize_t count, int flags,
                  const char *what) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags))
        return -1;
    const char *f = view->format ? view->format : "B";
    if (*f == '<' || *f == '=' || *f == '@')
        f++;
    /* int32 is 'i', or 'l' where long has 4 bytes */
    const int good = f[0] == format || (format == 'i' && f[0] == 'l') || (format == 'I' && f[0] == 'L');
    if (!good || f[1] != '\0' || view->itemsize != size || (count >= 0 && view->len != count * size)) {
        PyBuffer_Release(view);
        PyErr_Format(PyExc_ValueError, "%s must be a contiguous array of type %c and the expected length", what, format);
        return -1;
    }
    return 0;
}

static PyObject *Program_batch(Program *p, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "batch(columns, rows, out) takes three arguments");
        return NULL;
    }
    const Py_ssize_t rows = PyLong_AsSsize_t(args[1]);
    if (rows == -1 && PyErr_Occurred())
        return NULL;
    if (!PyTuple_CheckExact(args[0]) || PyTuple_GET_SIZE(args[0]) != p->columns || rows < 0 ||
        rows > PY_SSIZE_T_MAX / 16 / (p->width ? p->width : 1))
        return PyErr_Format(PyExc_ValueError, "A batch is a tuple of %zd columns and a number of rows.", p->columns);
    Py_buffer out, *views = PyMem_Calloc((size_t)p->columns + 1, sizeof(Py_buffer));
    if (views == NULL)
        return PyErr_NoMemory();
    if (buffer(args[2], &out, 'd', 8, rows * p->width, PyBUF_WRITABLE, "out")) {
        PyMem_Free(views);
        return NULL;
    }
    Py_ssize_t held = 0, failed = -1, outside = -1;
    char *space = NULL;
    PyObject *made = NULL;
    for (; held < p->columns; held++)
        if (buffer(PyTuple_GET_ITEM(args[0], held), views + held, p->categories[held] ? 'i' : 'd',
                   p->categories[held] ? 4 : 8, rows, 0, "a column"))
            goto done;
    const size_t cells = (size_t)p->features * BLOCK;
    space = PyMem_Calloc(cells, sizeof(double) + sizeof(int32_t));
    if (space == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    double *x = (double *)space;
    int32_t *c = (int32_t *)(x + cells);
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t first = 0; first < rows && failed < 0 && outside < 0; first += BLOCK) {
        const Py_ssize_t some = rows - first < BLOCK ? rows - first : BLOCK;
        for (Py_ssize_t i = 0; i < p->columns; i++) {
            if (p->categories[i] == NULL)
                memcpy(x + p->place[i] * BLOCK, (const double *)views[i].buf + first, (size_t)some * sizeof(double));
            else {
                const int32_t *from = (const int32_t *)views[i].buf + first, size = p->sizes[p->place[i]];
                int32_t *to = c + (p->slots + p->place[i]) * BLOCK;
                for (Py_ssize_t r = 0; r < some; r++) {
                    const int32_t code = from[r]; /* read once: another thread may write to it */
                    if (code < 0 || code >= size)
                        outside = i;
                    to[r] = code < 0 || code >= size ? 0 : code;
                }
            }
        }
        if (outside < 0)
            failed = run_block(p, x, c, some, (double *)out.buf + first * p->width);
    }
    Py_END_ALLOW_THREADS;
    if (outside >= 0)
        PyErr_Format(PyExc_ValueError, "Column %R holds a code outside its categories.", PyTuple_GET_ITEM(p->names, outside));
    else if (failed >= 0)
        refused(p, failed);
    else
        made = Py_NewRef(Py_None);
done:
    while (held > 0)
        PyBuffer_Release(views + --held);
    PyBuffer_Release(&out);
    PyMem_Free(views);
    PyMem_Free(space);
    return made;
}

/* ---- Making ------------------------------------------------------------------------------------------------------ */

/* Copy the array `name` of `arrays` (a dict); its length goes to *count. */
static void *take(PyObject *arrays, const char *name, char format, Py_ssize_t size, Py_ssize_t *count) {
    PyObject *array = PyDict_GetItemString(arrays, name);
    if (array == NULL)
        return PyErr_Format(PyExc_ValueError, "the array %s is missing", name), NULL;
    Py_buffer view;
    if (buffer(array, &view, format, size, -1, 0, name))
        return NULL;
    void *copy = PyMem_Malloc((size_t)view.len + 1);
    if (copy == NULL)
        PyErr_NoMemory();
    else if (view.len)
        memcpy(copy, view.buf, (size_t)view.len);
    *count = view.len / size;
    PyBuffer_Release(&view);
    return copy;
}

static int bad(const char *what) {
    PyErr_Format(PyExc_ValueError, "a compiled predictor is malformed: %s", what);
    return -1;
}

static int make_columns(Program *p, PyObject *columns) {
    p->columns = PyTuple_GET_SIZE(columns);
    if (p->columns > MAX_FEATURES)
        return bad("too many columns");
    p->names = PyTuple_New(p->columns);
    p->categories = PyMem_Calloc((size_t)p->columns + 1, sizeof(PyObject *));
    p->place = PyMem_Calloc((size_t)p->columns + 1, sizeof(int32_t));
    if (p->names == NULL || p->categories == NULL || p->place == NULL)
        return PyErr_Occurred() ? -1 : (PyErr_NoMemory(), -1);
    for (Py_ssize_t i = 0; i < p->columns; i++)
        PyTuple_SET_ITEM(p->names, i, Py_NewRef(Py_None));
    for (Py_ssize_t i = 0; i < p->columns; i++) {
        PyObject *each = PyTuple_GET_ITEM(columns, i);
        PyObject *name, *values;
        if (!PyTuple_CheckExact(each) || !PyArg_ParseTuple(each, "UO", &name, &values))
            return PyErr_Occurred() ? -1 : bad("a column");
        PyTuple_SetItem(p->names, i, Py_NewRef(name));
        if (values == Py_None) {
            p->place[i] = (int32_t)p->numbers++;
            continue;
        }
        if (!PyTuple_CheckExact(values) || PyTuple_GET_SIZE(values) > INT32_MAX - 2)
            return bad("a column's categories");
        p->place[i] = (int32_t)p->codes++;
        p->categories[i] = PyDict_New();
        for (Py_ssize_t j = 0; p->categories[i] != NULL && j < PyTuple_GET_SIZE(values); j++) {
            PyObject *text = PyTuple_GET_ITEM(values, j), *code = PyLong_FromSsize_t(j);
            const int failed = code == NULL || !PyUnicode_CheckExact(text) || PyDict_SetItem(p->categories[i], text, code);
            Py_XDECREF(code);
            if (failed)
                return PyErr_Occurred() ? -1 : bad("a category that is not text");
        }
        if (p->categories[i] == NULL)
            return -1;
    }
    return 0;
}

static int make_ops(Program *p, PyObject *arrays) {
    Py_ssize_t n, m;
    p->ops = take(arrays, "ops", 'i', 4, &n);
    if (p->ops == NULL || (p->args = take(arrays, "args", 'd', 8, &m)) == NULL)
        return -1;
    if (n % 4 || m != n / 2)
        return bad("operations");
    p->op_count = n / 4;
    if ((p->tables = take(arrays, "tables", 'd', 8, &p->table_length)) == NULL)
        return -1;
    if (p->op_count > MAX_FEATURES)
        return bad("too many operations");
    p->sizes = PyMem_Calloc((size_t)(p->codes + p->op_count) + 1, sizeof(int32_t));
    if (p->sizes == NULL)
        return PyErr_NoMemory(), -1;
    Py_ssize_t code = 0;
    for (Py_ssize_t i = 0; i < p->columns; i++)
        if (p->categories[i] != NULL)
            p->sizes[code++] = (int32_t)PyDict_GET_SIZE(p->categories[i]) + 1;
    p->slots = p->numbers;
    for (Py_ssize_t i = 0; i < p->op_count; i++) {
        const Op op = p->ops[i];
        if (op.src < 0 || op.src >= (op.code == CHECK_CODE ? code : p->slots))
            return bad("an operation reads what is not there");
        if (op.code >= IMPUTE && op.code <= TRUNC)
            p->slots++;
        else if (op.code == MATCH || op.code == BINS) {
            if (op.offset < 0 || op.length < 0 || op.offset > p->table_length - op.length || op.length > INT32_MAX - 2)
                return bad("an operation's table");
            p->sizes[code++] = op.length + 2;
        } else if (op.code == CHECK || op.code == CHECK_CODE) {
            if (op.offset < 0 || op.offset >= p->columns)
                return bad("a check's column");
            if (op.code == CHECK_CODE && (op.length < 0 || op.length > p->table_length - p->sizes[op.src]))
                return bad("a check's table");
        } else
            return bad("an unknown operation");
    }
    p->codes = code;
    p->features = p->slots + p->codes + 1 + p->slots; /* the constant, and copies */
    return 0;
}

static int make_linear(Program *p, PyObject *arrays) {
    Py_ssize_t n, m;
    if ((p->terms = take(arrays, "terms", 'i', 4, &p->term_count)) == NULL ||
        (p->weights = take(arrays, "weights", 'd', 8, &n)) == NULL ||
        (p->groups = take(arrays, "groups", 'i', 4, &m)) == NULL)
        return -1;
    if (n != p->term_count * p->width || m % 2)
        return bad("linear terms");
    p->group_count = m / 2;
    for (Py_ssize_t i = 0; i < p->term_count; i++)
        if (p->terms[i] < 0 || p->terms[i] >= p->slots)
            return bad("a linear term");
    for (Py_ssize_t i = 0; i < p->group_count; i++) {
        const int32_t code = p->groups[2 * i], offset = p->groups[2 * i + 1];
        if (code < 0 || code >= p->codes || offset < 0 ||
            (Py_ssize_t)p->sizes[code] * p->width > p->table_length - offset)
            return bad("a linear table");
    }
    return 0;
}

static int make_trees(Program *p, PyObject *arrays) {
    Py_ssize_t n, m, bit_count, value_count;
    int32_t *feature = NULL, *left = NULL;
    double *threshold = NULL;
    uint8_t *missing = NULL;
    uint32_t *payload = NULL, *bits = NULL;
    int result = -1;
    p->roots = take(arrays, "roots", 'i', 4, &p->tree_count);
    if (p->roots == NULL || (p->outputs = take(arrays, "outputs", 'i', 4, &n)) == NULL)
        return -1;
    if (n != p->tree_count)
        return bad("trees");
    if ((p->values = take(arrays, "values", 'd', 8, &value_count)) == NULL)
        return -1;
    if (p->value_width < 1 || p->value_width > p->width || value_count % p->value_width)
        return bad("values");
    value_count /= p->value_width;
    if ((feature = take(arrays, "feature", 'i', 4, &p->node_count)) == NULL ||
        (left = take(arrays, "left", 'i', 4, &n)) == NULL || (threshold = take(arrays, "threshold", 'd', 8, &m)) == NULL)
        goto done;
    Py_ssize_t missing_count, payload_count;
    if ((missing = take(arrays, "missing", 'B', 1, &missing_count)) == NULL ||
        (payload = take(arrays, "payload", 'I', 4, &payload_count)) == NULL ||
        (bits = take(arrays, "bits", 'I', 4, &bit_count)) == NULL)
        goto done;
    if (n != p->node_count || m != n || missing_count != n || payload_count != n || n == 0 || n > INT32_MAX) {
        bad("nodes");
        goto done;
    }
    p->nodes = PyMem_Malloc((size_t)n * sizeof(Node));
    p->bits = PyMem_Malloc(((size_t)bit_count + 1) * sizeof(uint32_t));
    p->copied = PyMem_Calloc((size_t)p->slots + 1, 1);
    if (p->nodes == NULL || p->bits == NULL || p->copied == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    p->bits[0] = 0;
    if (bit_count)
        memcpy(p->bits + 1, bits, (size_t)bit_count * sizeof(uint32_t));
    for (Py_ssize_t i = 0; i < n; i++) {
        Node *node = p->nodes + i;
        const int32_t f = feature[i];
        *node = (Node){HUGE_VAL, (uint32_t)i, (uint32_t)(p->slots + p->codes), 0, payload[i]};
        if (f < 0) { /* a leaf */
            if (payload[i] >= (uint64_t)value_count) {
                bad("a leaf's value");
                goto done;
            }
            continue;
        }
        if (f >= p->slots + p->codes || left[i] <= i || left[i] >= n - 1 || missing[i] > 1) {
            bad("a split");
            goto done;
        }
        node->left = (uint32_t)left[i];
        node->feature = (uint32_t)f;
        if (f < p->slots) {
            node->threshold = threshold[i];
            if (!missing[i]) {
                node->feature = (uint32_t)(p->slots + p->codes + 1 + f);
                p->copied[f] = 1;
            }
        } else {
            const Py_ssize_t words = ((Py_ssize_t)p->sizes[f - p->slots] + 31) / 32;
            if ((Py_ssize_t)payload[i] > bit_count - words) {
                bad("a split's categories");
                goto done;
            }
            node->word = payload[i] + 1;
            p->has_codes = 1;
        }
        if (threshold[i] != threshold[i]) {
            bad("a split at NaN");
            goto done;
        }
    }
    for (Py_ssize_t t = 0; t < p->tree_count; t++)
        if (p->roots[t] < 0 || p->roots[t] >= n || p->outputs[t] < 0 || p->outputs[t] > p->width - p->value_width) {
            bad("a tree");
            goto done;
        }
    result = 0;
done:
    PyMem_Free(feature), PyMem_Free(left), PyMem_Free(threshold);
    PyMem_Free(missing), PyMem_Free(payload), PyMem_Free(bits);
    return result;
}

static PyObject *Program_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *columns, *arrays;
    const char *kind;
    int link, single;
    double divisor, scale;
    Py_ssize_t width;
    if (keywords != NULL && PyDict_GET_SIZE(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Program takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!sO!inpdd", &PyTuple_Type, &columns, &kind, &PyDict_Type, &arrays, &link, &width,
                          &single, &divisor, &scale))
        return NULL;
    Program *p = (Program *)type->tp_alloc(type, 0);
    if (p == NULL)
        return NULL;
    p->link = link, p->single = single, p->divisor = divisor, p->scale = scale;
    if (make_columns(p, columns) || make_ops(p, arrays))
        goto failed;
    if ((p->base = take(arrays, "base", 'd', 8, &p->width)) == NULL)
        goto failed;
    if (p->width < 1 || p->width > MAX_OUTPUTS || link < IDENTITY || link > OVR) {
        bad("outputs");
        goto failed;
    }
    p->value_width = width;
    if (strcmp(kind, "trees") == 0 ? make_trees(p, arrays)
                                   : (strcmp(kind, "linear") == 0 ? make_linear(p, arrays) : bad("its kind")))
        goto failed;
    return (PyObject *)p;
failed:
    Py_DECREF(p);
    return NULL;
}

static void Program_dealloc(Program *p) {
    Py_XDECREF(p->names);
    for (Py_ssize_t i = 0; p->categories != NULL && i < p->columns; i++)
        Py_XDECREF(p->categories[i]);
    PyMem_Free(p->categories), PyMem_Free(p->place), PyMem_Free(p->sizes), PyMem_Free(p->ops), PyMem_Free(p->args);
    PyMem_Free(p->tables), PyMem_Free(p->base), PyMem_Free(p->terms), PyMem_Free(p->groups), PyMem_Free(p->weights);
    PyMem_Free(p->roots), PyMem_Free(p->outputs), PyMem_Free(p->nodes), PyMem_Free(p->copied), PyMem_Free(p->bits), PyMem_Free(p->values);
    PyTypeObject *type = Py_TYPE(p);
    type->tp_free((PyObject *)p);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"row", (PyCFunction)(void (*)(void))Program_row, METH_O, "Return the score or scores of one row of values."},
    {"batch", (PyCFunction)(void (*)(void))Program_batch, METH_FASTCALL, "Fill `out` with the scores of many rows."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot slots[] = {{Py_tp_new, Program_new},
                              {Py_tp_dealloc, Program_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_doc, "A compiled predictor."},
                              {0, NULL}};

static PyType_Spec spec = {"tidemill.kernels._predictors.Program", sizeof(Program), 0, Py_TPFLAGS_DEFAULT, slots};

static int execute(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    const int failed = PyModule_AddObjectRef(module, "Program", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_predictors", "Compiled predictors.", 0, NULL,
                                        module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__predictors(void) { return PyModuleDef_Init(&definition); }
