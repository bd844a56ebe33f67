/* Keys of one or more whole numbers: numbered as they first come, and found again; and rows that may share theirs.
 *
 * A table of open addressing holds the numbers, the keys lie one after the other beside it: a look-up touches one slot
 * and one key. Both are far from each other and from those of the next row, so that they are asked for ahead of time.
 */
#include "buffers.h"
#include "mix.h"

#include <stdlib.h>

enum { AHEAD = 64 }; /* rows whose slots and keys are on their way together */

#define NONE UINT32_MAX

static const char *const NAME = "tidemill.keys";

typedef struct {
    uint32_t *slots; /* the number of a key, NONE for none; a power of two of them, at least half of them empty */
    int64_t *keys;   /* key n: keys[n * columns …] */
    uint64_t mask;
    uint32_t count, room;
    int columns;
} Keys;

typedef struct {
    const int64_t *const *columns;
    const uint8_t *null; /* NULL: of no row */
} Rows;

static void keys_free(Keys *keys) {
    if (!keys) return;
    free(keys->slots);
    free(keys->keys);
    free(keys);
}

static inline uint64_t hash_row(const Keys *keys, const Rows *rows, size_t row) {
    uint64_t hash = 0;
    for (int column = 0; column < keys->columns; column++) hash = mixed(hash, (uint64_t)rows->columns[column][row]);
    return hash;
}

static inline int is_key(const Keys *keys, uint32_t number, const Rows *rows, size_t row) {
    const int64_t *key = keys->keys + (size_t)number * (size_t)keys->columns;
    for (int column = 0; column < keys->columns; column++) {
        if (key[column] != rows->columns[column][row]) return 0;
    }
    return 1;
}

/* The slot of the row's key: that of its number, or the empty one that it would take. */
static inline uint64_t slot_of(const Keys *keys, const Rows *rows, size_t row, uint64_t hash) {
    uint64_t slot = hash & keys->mask;
    while (keys->slots[slot] != NONE && !is_key(keys, keys->slots[slot], rows, row)) slot = (slot + 1) & keys->mask;
    return slot;
}

/* Make room for twice as many keys. Returns -1 when memory runs out. */
static int keys_grow(Keys *keys) {
    size_t room = keys->room ? 2 * (size_t)keys->room : 256, slots = 2 * room, columns = (size_t)keys->columns;
    int64_t *more = realloc(keys->keys, room * columns * sizeof *more);
    if (!more) return -1;
    keys->keys = more;
    uint32_t *fresh = malloc(slots * sizeof *fresh);
    if (!fresh) return -1;
    memset(fresh, 0xFF, slots * sizeof *fresh);
    for (uint32_t number = 0; number < keys->count; number++) {
        uint64_t hash = 0;
        for (size_t column = 0; column < columns; column++) hash = mixed(hash, (uint64_t)more[number * columns + column]);
        uint64_t slot = hash & (slots - 1);
        while (fresh[slot] != NONE) slot = (slot + 1) & (slots - 1);
        fresh[slot] = number;
    }
    free(keys->slots);
    keys->slots = fresh;
    keys->mask = slots - 1;
    keys->room = (uint32_t)room;
    return 0;
}

/* Hash rows first to last - 1, and have their slots on their way. */
static inline void look_ahead(const Keys *keys, const Rows *rows, size_t first, size_t last, uint64_t *hashes) {
    for (size_t row = first; row < last; row++) {
        hashes[row - first] = hash_row(keys, rows, row);
        __builtin_prefetch(keys->slots + (hashes[row - first] & keys->mask));
    }
}

/* Number the keys of rows as they first come. Returns -1 when memory runs out. */
static int number(Keys *keys, const Rows *rows, size_t count, int64_t *out) {
    uint64_t hashes[AHEAD];
    for (size_t start = 0; start < count; start += AHEAD) {
        size_t past = count - start < AHEAD ? count : start + AHEAD;
        look_ahead(keys, rows, start, past, hashes);
        for (size_t row = start; row < past; row++) {
            out[row] = -1;
            if (rows->null && rows->null[row]) continue;
            if (keys->count == keys->room && keys_grow(keys)) return -1;
            uint64_t slot = slot_of(keys, rows, row, hashes[row - start]);
            if (keys->slots[slot] == NONE) {
                int64_t *key = keys->keys + (size_t)keys->count * (size_t)keys->columns;
                for (int column = 0; column < keys->columns; column++) key[column] = rows->columns[column][row];
                keys->slots[slot] = keys->count++;
            }
            out[row] = keys->slots[slot];
        }
    }
    return 0;
}

/* Write the number of each row's key, -1 for keys that have none. */
static void find(const Keys *keys, const Rows *rows, size_t first, size_t last, int64_t *out) {
    uint64_t hashes[AHEAD];
    for (size_t start = first; start < last; start += AHEAD) {
        size_t past = last - start < AHEAD ? last : start + AHEAD;
        look_ahead(keys, rows, start, past, hashes);
        for (size_t row = start; row < past; row++) {
            uint32_t likely = keys->slots[hashes[row - start] & keys->mask];
            if (likely != NONE) __builtin_prefetch(keys->keys + (size_t)likely * (size_t)keys->columns);
        }
        for (size_t row = start; row < past; row++) {
            uint32_t found = NONE;
            if (!rows->null || !rows->null[row]) found = keys->slots[slot_of(keys, rows, row, hashes[row - start])];
            out[row] = found == NONE ? -1 : (int64_t)found;
        }
    }
}

/* Mark the hashes that share their low bits with another. Returns -1 when memory runs out. */
static int repeated(const uint64_t *hashes, size_t count, uint8_t *out) {
    uint64_t places = 1024; /* two bits each: one hash has been there, another has */
    while (places < 8 * (uint64_t)count) places *= 2;
    uint64_t *seen = calloc(places / 32, sizeof *seen), mask = places - 1;
    if (!seen) return -1;
    for (size_t each = 0; each < count; each++) {
        if (each + AHEAD < count) __builtin_prefetch(seen + (hashes[each + AHEAD] & mask) / 32, 1);
        uint64_t place = hashes[each] & mask, once = UINT64_C(1) << 2 * (place & 31), *word = seen + place / 32;
        *word |= once | (*word & once) << 1;
    }
    for (size_t each = 0; each < count; each++) {
        if (each + AHEAD < count) __builtin_prefetch(seen + (hashes[each + AHEAD] & mask) / 32);
        uint64_t place = hashes[each] & mask;
        out[each] = seen[place / 32] >> (2 * (place & 31) + 1) & 1;
    }
    free(seen);
    return 0;
}

/* Python. */

static void capsule_free(PyObject *capsule) { keys_free(PyCapsule_GetPointer(capsule, NAME)); }

/* Take the columns of rows and which of them are null; `columns` has room for as many as the tuple has items. */
static int take_rows(Buffers *buffers, PyObject *tuple, PyObject *null, const int64_t **columns, Rows *rows,
                     Py_ssize_t *count) {
    *count = -1;
    for (Py_ssize_t column = 0; column < PyTuple_GET_SIZE(tuple); column++) {
        columns[column] = take(buffers, PyTuple_GET_ITEM(tuple, column), "columns", INT64, 0, *count, count);
        if (!columns[column]) return -1;
    }
    *rows = (Rows){columns, NULL};
    if (null != Py_None && !(rows->null = take(buffers, null, "null", BOOL, 0, *count, NULL))) return -1;
    return 0;
}

static PyObject *keys_number(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 3 || !PyTuple_Check(args[0]) || !PyTuple_GET_SIZE(args[0])) {
        PyErr_SetString(PyExc_TypeError, "number(columns, null, out), with one column or more");
        return NULL;
    }
    size_t width = (size_t)PyTuple_GET_SIZE(args[0]);
    Buffers buffers = {PyMem_Calloc(width + 2, sizeof(Py_buffer)), 0, width + 2};
    const int64_t **columns = PyMem_Calloc(width, sizeof *columns);
    Keys *keys = calloc(1, sizeof *keys);
    PyObject *result = NULL;
    Rows rows;
    Py_ssize_t items;
    if (!buffers.views || !columns || !keys) {
        PyErr_NoMemory();
        goto done;
    }
    keys->columns = (int)width;
    if (take_rows(&buffers, args[0], args[1], columns, &rows, &items)) goto done;
    int64_t *out = take(&buffers, args[2], "out", INT64, 1, items, NULL);
    if (!out) goto done;
    if (items >= INT32_MAX || width > 1024) {
        PyErr_SetString(PyExc_ValueError, "more rows or columns than can be numbered");
        goto done;
    }
    int failed;
    Py_BEGIN_ALLOW_THREADS;
    failed = keys_grow(keys) || number(keys, &rows, (size_t)items, out);
    Py_END_ALLOW_THREADS;
    if (failed) {
        PyErr_NoMemory();
        goto done;
    }
    PyObject *capsule = PyCapsule_New(keys, NAME, capsule_free);
    if (!capsule) goto done;
    result = Py_BuildValue("NI", capsule, keys->count);
    keys = NULL;
done:
    keys_free(keys);
    PyMem_Free(columns);
    if (buffers.views) release(&buffers);
    return result;
}

static PyObject *keys_find(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 6 || !PyTuple_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "find(keys, columns, null, out, first, last)");
        return NULL;
    }
    const Keys *keys = PyCapsule_GetPointer(args[0], NAME);
    int64_t first = PyLong_AsLongLong(args[4]), last = PyLong_AsLongLong(args[5]);
    if (PyErr_Occurred()) return NULL;
    size_t width = (size_t)PyTuple_GET_SIZE(args[1]);
    if ((int64_t)width != keys->columns) {
        PyErr_SetString(PyExc_ValueError, "another number of columns than the keys have");
        return NULL;
    }
    Buffers buffers = {PyMem_Calloc(width + 2, sizeof(Py_buffer)), 0, width + 2};
    const int64_t **columns = PyMem_Calloc(width, sizeof *columns);
    PyObject *result = NULL;
    Rows rows;
    Py_ssize_t items;
    if (!buffers.views || !columns) {
        PyErr_NoMemory();
        goto done;
    }
    if (take_rows(&buffers, args[1], args[2], columns, &rows, &items)) goto done;
    int64_t *out = take(&buffers, args[3], "out", INT64, 1, items, NULL);
    if (!out) goto done;
    if (first < 0 || last < first || last > items) {
        PyErr_SetString(PyExc_ValueError, "rows that are not there");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS;
    find(keys, &rows, (size_t)first, (size_t)last, out);
    Py_END_ALLOW_THREADS;
    result = Py_NewRef(Py_None);
done:
    PyMem_Free(columns);
    if (buffers.views) release(&buffers);
    return result;
}

static PyObject *keys_repeated(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "repeated(hashes, out)");
        return NULL;
    }
    Buffers buffers = {PyMem_Calloc(2, sizeof(Py_buffer)), 0, 2};
    if (!buffers.views) return PyErr_NoMemory();
    PyObject *result = NULL;
    Py_ssize_t items;
    const uint64_t *hashes = take(&buffers, args[0], "hashes", UINT64, 0, -1, &items);
    if (!hashes) goto done;
    uint8_t *out = take(&buffers, args[1], "out", BOOL, 1, items, NULL);
    if (!out) goto done;
    int failed;
    Py_BEGIN_ALLOW_THREADS;
    failed = repeated(hashes, (size_t)items, out);
    Py_END_ALLOW_THREADS;
    result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
done:
    release(&buffers);
    return result;
}

PyDoc_STRVAR(
    number_doc,
    "number(columns, null, out, /)\n--\n\n"
    "Number the distinct keys of rows from 0, as they first come. columns: int64, one item a row; null: bool, the rows\n"
    "that have no key, or None. Writes each row's number, -1 for none, to `out` (int64). Returns the keys, for `find`,\n"
    "and how many there are."
);

PyDoc_STRVAR(
    find_doc,
    "find(keys, columns, null, out, first, last, /)\n--\n\n"
    "Write the number that the key of each of the rows first to last - 1 has among `keys` to `out` (int64, as many as\n"
    "rows), -1 for those that have none."
);

PyDoc_STRVAR(
    repeated_doc,
    "repeated(hashes, out, /)\n--\n\n"
    "Mark in `out` (bool) all hashes (uint64) that come more than once, and a few that do not: those that share their\n"
    "low bits with another."
);

static PyMethodDef methods[] = {
    {"number", (PyCFunction)(void (*)(void))keys_number, METH_FASTCALL, number_doc},
    {"find", (PyCFunction)(void (*)(void))keys_find, METH_FASTCALL, find_doc},
    {"repeated", (PyCFunction)(void (*)(void))keys_repeated, METH_FASTCALL, repeated_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_keys", "Keys of whole numbers; see keys.c.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__keys(void) { return PyModule_Create(&definition); }
