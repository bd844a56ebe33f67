/* Arrays that Python hands to a kernel: taken with their type and length checked, and given back together. */
#ifndef TIDEMILL_BUFFERS_H
#define TIDEMILL_BUFFERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    Py_buffer *views;
    size_t count, room;
} Buffers;

/* Take a one-dimensional, contiguous buffer of `length` items (any number when it is -1) of one of the formats. */
static inline void *take(Buffers *buffers, PyObject *object, const char *what, const char *formats, int size,
                         int writable, Py_ssize_t length, Py_ssize_t *items) {
    if (buffers->count == buffers->room) {
        PyErr_SetString(PyExc_RuntimeError, "too many buffers");
        return NULL;
    }
    Py_buffer *view = buffers->views + buffers->count;
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags)) return NULL;
    buffers->count++;
    const char *format = view->format ? view->format : "B";
    if (*format == '<' || *format == '=' || *format == '@') format++;
    if (view->ndim != 1 || view->itemsize != size || !*format || format[1] || !strchr(formats, *format)) {
        PyErr_Format(PyExc_TypeError, "%s: a one-dimensional array of another type is needed (one of %s, %d bytes)", what,
                     formats, size);
        return NULL;
    }
    Py_ssize_t count = view->len / size;
    if (length >= 0 && count != length) {
        PyErr_Format(PyExc_ValueError, "%s: %zd items, and not %zd", what, count, length);
        return NULL;
    }
    if (items) *items = count;
    static char empty[16];
    return view->buf ? view->buf : empty;
}

static inline void release(Buffers *buffers) {
    for (size_t i = 0; i < buffers->count; i++) PyBuffer_Release(buffers->views + i);
    PyMem_Free(buffers->views);
}

#define INT32 "il", 4
#define INT64 "lq", 8
#define UINT32 "IL", 4
#define UINT64 "LQ", 8
#define FLOAT64 "d", 8
#define BOOL "?Bb", 1

/* Whether bounds[first … last] ascend within `items`, and the places they bound name rows below `rows`. */
static inline int in_bounds(const int64_t *bounds, int64_t first, int64_t last, Py_ssize_t items, const uint32_t *order,
                            Py_ssize_t rows) {
    for (int64_t group = first; group <= last; group++) {
        if (bounds[group] < (group == first ? 0 : bounds[group - 1]) || bounds[group] > items) return 0;
        if (group > first && bounds[group] - bounds[group - 1] > INT32_MAX) return 0;
    }
    if (order) {
        for (int64_t place = bounds[first]; place < bounds[last]; place++) {
            if ((Py_ssize_t)order[place] >= rows) return 0;
        }
    }
    return 1;
}

#endif
