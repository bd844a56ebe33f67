/* Columns of a frame as the arrays that a compiled predictor takes: numbers with null as NaN, texts as the codes of their
 * categories. They come through Arrow's C interface, so that nothing is copied but what is answered.
 *
 * A text is found in a table of open addressing. Of one of up to 12 bytes, which is most of them, Arrow keeps all bytes
 * beside the length, so that comparing it is comparing two words.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arrow.h"
#include "buffers.h"
#include "mix.h"

enum { INLINE = 12 }; /* bytes of a text that Arrow keeps beside its length */

/* A text as it is compared: `head` is its length and its first 4 bytes; `tail` the next 8 or, if it is longer than
   INLINE, a hash of all, whose bytes are then at `bytes`. */
typedef struct {
    uint64_t head, tail;
    const char *bytes;
} Text;

typedef struct {
    Text text;
    int32_t code; /* -1: the slot is empty */
} Slot;

typedef struct {
    Slot *slots; /* NULL: a column of numbers */
    uint64_t mask;
    int32_t size; /* of categories: the code of null, and of a text that is none of them */
    char *texts;  /* the bytes of all that are longer than INLINE */
} Column;

typedef struct {
    PyObject_HEAD
    Column *columns;
    Py_ssize_t count;
} Reader;

/* Return the text of `length` bytes that lie in `near`, where other bytes may follow, or at `far` if they do not fit. */
static inline Text text_of(uint32_t length, const char near[INLINE], const char *far) {
    uint32_t start;
    uint64_t tail = 0;
    if (length <= INLINE) {
        memcpy(&start, near, 4);
        memcpy(&tail, near + 4, 8);
        if (length < 4) start &= (UINT32_C(1) << 8 * length) - 1;
        tail = length <= 4 ? 0 : tail << 8 * (INLINE - length); /* without what follows */
        return (Text){(uint64_t)start << 32 | length, tail, NULL};
    }
    memcpy(&start, far, 4);
    for (uint32_t at = 0; at < length; at += 8) {
        uint64_t part = 0;
        memcpy(&part, far + at, length - at < 8 ? length - at : 8);
        tail = mixed(tail, part);
    }
    return (Text){(uint64_t)start << 32 | length, tail, far};
}

static inline Slot *slot_of(const Column *column, const Text *text) {
    const uint32_t length = (uint32_t)text->head;
    for (uint64_t at = mixed(text->head, text->tail);; at++) {
        Slot *slot = column->slots + (at & column->mask);
        if (slot->code < 0 || (slot->text.head == text->head && slot->text.tail == text->tail &&
                               (length <= INLINE || memcmp(slot->text.bytes, text->bytes, length) == 0)))
            return slot;
    }
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

static inline int is_null(const uint8_t *valid, int64_t at) { return valid && !(valid[at >> 3] >> (at & 7) & 1); }

static void read_numbers(const double *values, const uint8_t *valid, int64_t first, int64_t rows, double *out) {
    memcpy(out, values + first, (size_t)rows * sizeof *out);
    for (int64_t row = 0; valid && row < rows;) {
        const int64_t at = first + row;
        if (at & 7 || rows - row < 8) {
            if (is_null(valid, at)) out[row] = (double)NAN;
            row++;
            continue;
        }
        for (unsigned missing = (uint8_t)~valid[at >> 3]; missing; missing &= missing - 1)
            out[row + __builtin_ctz(missing)] = (double)NAN;
        row += 8;
    }
}

/* A view: the length; then the bytes, or 4 of them, the number of a buffer and where in it they begin. */
static void read_texts(const Column *column, const char *views, const void *const *far, const uint8_t *valid,
                       int64_t first, int64_t rows, int32_t *out) {
    for (int64_t row = 0; row < rows; row++) {
        const char *view = views + 16 * (first + row);
        int32_t code = -1;
        if (!is_null(valid, first + row)) {
            uint32_t length, where[2];
            memcpy(&length, view, 4);
            memcpy(where, view + 8, 8);
            const Text text = text_of(length, view + 4, length > INLINE ? (const char *)far[where[0]] + where[1] : NULL);
            code = slot_of(column, &text)->code;
        }
        out[row] = code < 0 ? column->size : code;
    }
}

/* Read `array`, one record batch of a frame, to the arrays from row `at` on. */
static void read_batch(const Reader *reader, const struct ArrowArray *array, void *const *out, int64_t at) {
    for (Py_ssize_t i = 0; i < reader->count; i++) {
        const struct ArrowArray *column = array->children[i];
        const uint8_t *valid = column->null_count ? column->buffers[0] : NULL;
        const int64_t first = array->offset + column->offset;
        if (reader->columns[i].slots == NULL)
            read_numbers(column->buffers[1], valid, first, array->length, (double *)out[i] + at);
        else
            read_texts(reader->columns + i, column->buffers[1], column->buffers + 2, valid, first, array->length,
                       (int32_t *)out[i] + at);
    }
}

/* Whether the stream's columns are of the types that are read. Sets an error when they are not. */
static int fits(const Reader *reader, struct ArrowArrayStream *stream) {
    struct ArrowSchema schema = {0};
    if (stream->get_schema(stream, &schema)) {
        PyErr_SetString(PyExc_ValueError, "the frame's columns cannot be read");
        return 0;
    }
    int good = strcmp(schema.format, "+s") == 0 && schema.n_children == reader->count;
    if (!good) PyErr_Format(PyExc_ValueError, "a frame of %zd columns is needed", reader->count);
    for (Py_ssize_t i = 0; good && i < reader->count; i++) {
        const char *wanted = reader->columns[i].slots ? "vu" : "g", *found = schema.children[i]->format;
        good = strcmp(found, wanted) == 0;
        if (!good) PyErr_Format(PyExc_ValueError, "column %zd is of Arrow's type %s, and not %s", i, found, wanted);
    }
    schema.release(&schema);
    return good;
}

/* Read all batches. Returns how many rows there were, or -1 with an error set. */
static int64_t read_stream(const Reader *reader, struct ArrowArrayStream *stream, void *const *out, int64_t rows) {
    int64_t done = 0;
    for (;;) {
        struct ArrowArray array = {0};
        if (stream->get_next(stream, &array)) {
            PyErr_SetString(PyExc_ValueError, "the frame's rows cannot be read");
            return -1;
        }
        if (!array.release) return done;
        if (array.length > rows - done) {
            array.release(&array);
            PyErr_SetString(PyExc_ValueError, "the frame has more rows than the arrays have items");
            return -1;
        }
        Py_BEGIN_ALLOW_THREADS;
        read_batch(reader, &array, out, done);
        Py_END_ALLOW_THREADS;
        done += array.length;
        array.release(&array);
    }
}

static PyObject *Reader_read(Reader *reader, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[1]) != reader->count) {
        PyErr_Format(PyExc_TypeError, "read(stream, out), out a tuple of %zd arrays", reader->count);
        return NULL;
    }
    struct ArrowArrayStream *stream = PyCapsule_GetPointer(args[0], "arrow_array_stream");
    if (!stream) return NULL;
    if (!stream->release) {
        PyErr_SetString(PyExc_ValueError, "the frame has been read already");
        return NULL;
    }
    const size_t count = (size_t)reader->count;
    Buffers buffers = {PyMem_Calloc(count + 1, sizeof(Py_buffer)), 0, count + 1};
    void **out = PyMem_Calloc(count + 1, sizeof *out);
    PyObject *result = NULL;
    Py_ssize_t rows = -1;
    if (!buffers.views || !out) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        PyObject *array = PyTuple_GET_ITEM(args[1], (Py_ssize_t)i);
        out[i] = reader->columns[i].slots ? take(&buffers, array, "out", INT32, 1, rows, &rows)
                                          : take(&buffers, array, "out", FLOAT64, 1, rows, &rows);
        if (!out[i]) goto done;
    }
    if (!fits(reader, stream)) goto done;
    const int64_t done = read_stream(reader, stream, out, rows < 0 ? 0 : rows);
    if (done >= 0 && count && done != rows)
        PyErr_SetString(PyExc_ValueError, "the frame has fewer rows than the arrays have items");
    else if (done >= 0)
        result = Py_NewRef(Py_None);
done:
    stream->release(stream);
    if (buffers.views) release(&buffers);
    PyMem_Free(out);
    return result;
}

/* ---- Making ------------------------------------------------------------------------------------------------------ */

static int make_categories(Column *column, PyObject *values) {
    const Py_ssize_t size = PyTuple_GET_SIZE(values);
    if (size >= INT32_MAX / 4) return PyErr_SetString(PyExc_ValueError, "too many categories"), -1;
    size_t slots = 4, far = 1; /* a quarter of the slots are taken at most: hardly a text meets another */
    while (slots < 4 * (size_t)size) slots *= 2;
    for (Py_ssize_t i = 0; i < size; i++) {
        Py_ssize_t length;
        if (!PyUnicode_Check(PyTuple_GET_ITEM(values, i)))
            return PyErr_SetString(PyExc_TypeError, "a category that is not text"), -1;
        if (!PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(values, i), &length)) return -1;
        if (length > INT32_MAX) return PyErr_SetString(PyExc_ValueError, "a category is too long"), -1;
        far += length > INLINE ? (size_t)length : 0;
    }
    column->size = (int32_t)size;
    column->mask = slots - 1;
    column->slots = PyMem_Malloc(slots * sizeof *column->slots);
    column->texts = PyMem_Malloc(far);
    if (!column->slots || !column->texts) return PyErr_NoMemory(), -1;
    for (size_t i = 0; i < slots; i++) column->slots[i].code = -1;
    char *to = column->texts;
    for (Py_ssize_t i = 0; i < size; i++) {
        Py_ssize_t length;
        const char *bytes = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(values, i), &length);
        if (!bytes) return -1;
        char near[INLINE] = {0}, *far = to;
        memcpy(length > INLINE ? far : near, bytes, (size_t)length);
        if (length > INLINE) to += length;
        const Text text = text_of((uint32_t)length, near, far);
        Slot *slot = slot_of(column, &text);
        if (slot->code >= 0) return PyErr_SetString(PyExc_ValueError, "a category comes twice"), -1;
        *slot = (Slot){text, (int32_t)i};
    }
    return 0;
}

static PyObject *Reader_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *kinds;
    if (keywords != NULL && PyDict_GET_SIZE(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Reader takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &kinds)) return NULL;
    Reader *reader = (Reader *)type->tp_alloc(type, 0);
    if (!reader) return NULL;
    reader->count = PyTuple_GET_SIZE(kinds);
    reader->columns = PyMem_Calloc((size_t)reader->count + 1, sizeof *reader->columns);
    if (!reader->columns) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t i = 0; i < reader->count; i++) {
        PyObject *values = PyTuple_GET_ITEM(kinds, i);
        if (values == Py_None) continue;
        if (!PyTuple_CheckExact(values)) {
            PyErr_SetString(PyExc_TypeError, "a column's categories are a tuple, or None for a number");
            goto failed;
        }
        if (make_categories(reader->columns + i, values)) goto failed;
    }
    return (PyObject *)reader;
failed:
    Py_DECREF(reader);
    return NULL;
}

static void Reader_dealloc(Reader *reader) {
    for (Py_ssize_t i = 0; reader->columns && i < reader->count; i++) {
        PyMem_Free(reader->columns[i].slots);
        PyMem_Free(reader->columns[i].texts);
    }
    PyMem_Free(reader->columns);
    PyTypeObject *type = Py_TYPE(reader);
    type->tp_free((PyObject *)reader);
    Py_DECREF(type);
}

PyDoc_STRVAR(
    read_doc,
    "read(stream, out, /)\n--\n\n"
    "Write the columns of a frame (an `arrow_array_stream` of float64 and string views) to the arrays of `out`, as many\n"
    "items each as the frame has rows: float64 with null as NaN, or int32 codes. Raises ValueError for other columns."
);

static PyMethodDef methods[] = {
    {"read", (PyCFunction)(void (*)(void))Reader_read, METH_FASTCALL, read_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, Reader_new},
    {Py_tp_dealloc, Reader_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "Reader(categories, /)\n--\n\nReads columns: for each its categories, a tuple of text, or None for numbers."},
    {0, NULL},
};

static PyType_Spec spec = {"tidemill.kernels._columns.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, slots};

static int execute(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (!type) return -1;
    const int failed = PyModule_AddObjectRef(module, "Reader", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_columns", "Columns of a frame as arrays; see columns.c.", 0, NULL, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__columns(void) { return PyModuleDef_Init(&definition); }
