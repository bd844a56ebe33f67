/* Columns that are given away as an Arrow struct array through the C data interface: each owns its buffers. */
#ifndef TIDEMILL_EXPORT_H
#define TIDEMILL_EXPORT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arrow.h"
#include "segments.h"

typedef struct ArrowSchema arrow_schema;
typedef struct ArrowArray arrow_array;

static void release_schema(arrow_schema *schema) {
    for (int64_t i = 0; i < schema->n_children; i++) {
        if (schema->children[i] && schema->children[i]->release) schema->children[i]->release(schema->children[i]);
        free(schema->children[i]);
    }
    free(schema->children);
    free(schema->private_data);
    schema->release = NULL;
}

static void release_array(arrow_array *array) {
    for (int64_t i = 0; i < array->n_children; i++) {
        if (array->children[i] && array->children[i]->release) array->children[i]->release(array->children[i]);
        free(array->children[i]);
    }
    free(array->children);
    for (int64_t i = 0; i < array->n_buffers; i++) free((void *)array->buffers[i]);
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
    schema->private_data = strdup(name);
    schema->name = schema->private_data;
    if (children) schema->children = calloc((size_t)children, sizeof *schema->children);
    if (schema->private_data && (!children || schema->children)) {
        schema->n_children = children;
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
        array->n_buffers = buffers;
        array->n_children = children;
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

static const char *format_of(char kind) {
    switch (kind) {
        case 'f': return "g";
        case 'b': return "b";
        case 't': return "U";
        case 'u': return "L";
        default: return "l";
    }
}

#endif
