/* The module `_expressions`: programs over rows (see expressions.h), built and fed from Python.
 *
 * Whatever Python hands in is checked once, when a program is built: names, kinds, registers, tables. Rows are checked
 * value by value, columns by their types and lengths. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <datetime.h>

#include "expressions.h"

#define MOST 4096 /* inputs, constants, instructions, outputs and tables, of each */
#define SLOT (sizeof(Text) + 8) /* a constant: its value, and a byte that says whether it is there */

/* Types of inputs and outputs: float64 and float32, truth values, whole numbers by width and sign, text, days, times.
 * Python hands over a date as `datetime.date` and a time as microseconds since 1970. */
static const char TYPES[] = "df?qihbIHBsDT";

static char kind_of(char type) { return type == 'd' || type == 'f' ? FLOAT : type == 's' ? TEXT : WHOLE; }

/* Bytes of one value in a column; 0 where they are bits or of any length. */
static int64_t width_of(char type) {
    switch (type) {
    case 'd': case 'q': case 'T': return 8;
    case 'f': case 'i': case 'I': case 'D': return 4;
    case 'h': case 'H': return 2;
    case 'b': case 'B': return 1;
    default: return 0;
    }
}

typedef struct {
    PyObject_HEAD
    Program program;
    int32_t outputs;
    PyObject **names; /* of the inputs */
    char *input_types;
    int32_t *output; /* registers */
    char *output_types;
    char *constants; /* their registers' contents, one row */
    PyObject *held;  /* what owns the texts of constants and sets */
} Object;

/* ---- building ---- */

static int refuse(const char *message) {
    PyErr_SetString(PyExc_ValueError, message);
    return -1;
}

static int take_float(PyObject *value, double *to) {
    *to = PyFloat_AsDouble(value);
    return *to == -1.0 && PyErr_Occurred() ? -1 : 0;
}

static int take_whole(PyObject *value, int64_t *to) {
    if (!PyLong_Check(value)) return PyErr_SetString(PyExc_TypeError, "expected a whole number"), -1;
    *to = PyLong_AsLongLong(value);
    return *to == -1 && PyErr_Occurred() ? -1 : 0;
}

static int take_text(PyObject *value, Text *to) {
    if (!PyUnicode_Check(value)) return PyErr_SetString(PyExc_TypeError, "expected a string"), -1;
    Py_ssize_t size;
    to->at = PyUnicode_AsUTF8AndSize(value, &size);
    to->size = size;
    return to->at ? 0 : -1;
}

/* Read `value` into the register at `at`. */
static int take(PyObject *value, char kind, void *at) {
    switch (kind) {
    case FLOAT: return take_float(value, at);
    case WHOLE: return take_whole(value, at);
    default: return take_text(value, at);
    }
}

/* A tuple of at most MOST items (a list is copied), or NULL. */
static PyObject *several(PyObject *value, const char *what) {
    if (!PyTuple_Check(value) && !PyList_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a tuple or a list", what);
        return NULL;
    }
    PyObject *items = PySequence_Tuple(value);
    if (items && PyTuple_GET_SIZE(items) > MOST) {
        PyErr_Format(PyExc_ValueError, "%s: more than %d", what, MOST);
        Py_CLEAR(items);
    }
    return items;
}

static char letter(const char *text, const char *allowed) {
    if (strlen(text) == 1 && strchr(allowed, text[0])) return text[0];
    PyErr_Format(PyExc_ValueError, "unknown type %.20s", text);
    return 0;
}

static void free_table(Table *table) {
    free(table->items);
    free(table->offsets);
}

static int64_t sorted(const Table *table) {
    for (int64_t i = 1; i < table->size; i++) {
        int rises = table->kind == FLOAT ? below(((double *)table->items)[i - 1], ((double *)table->items)[i])
                    : table->kind == TEXT ? order(((Text *)table->items)[i - 1], ((Text *)table->items)[i]) < 0
                                          : ((int64_t *)table->items)[i - 1] < ((int64_t *)table->items)[i];
        if (!rises) return 0;
    }
    return 1;
}

/* Fill `table` from (kind, items) or, for a zone, (kind, changes, offsets). Texts point into `items`. */
static int make_table(Table *table, char kind, PyObject *items, PyObject *offsets) {
    if (!PyTuple_Check(items) || (kind == 'z') != (offsets != NULL) || (offsets && !PyTuple_Check(offsets)))
        return refuse("a table is (kind, tuple), a zone ('z', changes, offsets)");
    table->kind = kind;
    table->size = PyTuple_GET_SIZE(items);
    int64_t width = value_bytes(kind);
    if (!(table->items = calloc((size_t)table->size + 1, (size_t)width))) return PyErr_NoMemory(), -1;
    for (int64_t i = 0; i < table->size; i++)
        if (take(PyTuple_GET_ITEM(items, i), kind == 'z' ? WHOLE : kind, (char *)table->items + i * width)) return -1;
    if (!sorted(table)) return refuse("the items of a table must rise");
    if (kind != 'z') return 0;
    if (PyTuple_GET_SIZE(offsets) != table->size + 1) return refuse("a zone has one offset more than changes");
    if (!(table->offsets = calloc((size_t)table->size + 1, 8))) return PyErr_NoMemory(), -1;
    for (int64_t i = 0; i <= table->size; i++) {
        if (take_whole(PyTuple_GET_ITEM(offsets, i), &table->offsets[i])) return -1;
        if (table->offsets[i] <= -DAY_US * 2 || table->offsets[i] >= DAY_US * 2) return refuse("an offset of days");
    }
    return 0;
}

static int add_inputs(Object *self, PyObject *inputs) {
    Program *program = &self->program;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(inputs); i++) {
        PyObject *name;
        const char *type;
        if (!PyTuple_Check(PyTuple_GET_ITEM(inputs, i))) return refuse("an input is (name, type)");
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(inputs, i), "Us", &name, &type)) return -1;
        if (!(self->input_types[i] = letter(type, TYPES))) return -1;
        program->kinds[i] = kind_of(self->input_types[i]);
        Py_INCREF(name);
        PyUnicode_InternInPlace(&name);
        self->names[program->inputs++] = name;
    }
    return 0;
}

static int add_constants(Object *self, PyObject *constants) {
    Program *program = &self->program;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(constants); i++) {
        const char *kind;
        PyObject *value;
        if (!PyTuple_Check(PyTuple_GET_ITEM(constants, i))) return refuse("a constant is (kind, value)");
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(constants, i), "sO", &kind, &value)) return -1;
        char *at = self->constants + i * (Py_ssize_t)SLOT;
        char letter_of = letter(kind, "fis");
        if (!letter_of) return -1;
        program->kinds[program->inputs + i] = letter_of;
        at[sizeof(Text)] = value != Py_None;
        if (letter_of == TEXT) memcpy(at, &(Text){"", 0}, sizeof(Text));
        if (value != Py_None && take(value, letter_of, at)) return -1;
        program->constants++;
    }
    return 0;
}

static int add_tables(Object *self, PyObject *tables) {
    Program *program = &self->program;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tables); i++) {
        const char *kind;
        PyObject *items, *offsets = NULL;
        if (!PyTuple_Check(PyTuple_GET_ITEM(tables, i))) return refuse("a table is a tuple");
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(tables, i), "sO|O", &kind, &items, &offsets)) return -1;
        char letter_of = letter(kind, "fisz");
        if (!letter_of) return -1;
        program->tables++;
        if (make_table(&program->table[i], letter_of, items, offsets)) return -1;
    }
    return 0;
}

static int bad_immediate(const Program *program, const Instruction *code) {
    int64_t imm = code->imm;
    char kind = FORMS[code->op].arguments[0];
    switch (FORMS[code->op].imm) {
    case 't': return imm < 0 || imm >= program->tables || program->table[imm].kind != kind;
    case 'z': return imm < 0 || imm >= program->tables || program->table[imm].kind != 'z';
    case 'w': return imm != 8 && imm != 16 && imm != 32 && imm != 64 && imm != -8 && imm != -16 && imm != -32;
    case 'n':
        if (code->op == OP_SBUCKET || code->op == OP_IBUCKET) return imm < 1;
        return imm < 0;
    default: return imm != 0;
    }
}

static int add_code(Object *self, PyObject *codes) {
    Program *program = &self->program;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(codes); i++) {
        const char *name;
        PyObject *arguments;
        Instruction *code = &program->code[i];
        if (!PyTuple_Check(PyTuple_GET_ITEM(codes, i))) return refuse("an instruction is (name, arguments, number)");
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(codes, i), "sO!i", &name, &PyTuple_Type, &arguments, &code->imm))
            return -1;
        int32_t op = 0;
        while (op < OP_COUNT && strcmp(FORMS[op].name, name)) op++;
        if (op == OP_COUNT) return PyErr_Format(PyExc_ValueError, "unknown instruction %.40s", name), -1;
        code->op = op;
        Py_ssize_t count = PyTuple_GET_SIZE(arguments);
        if (count != (Py_ssize_t)strlen(FORMS[op].arguments))
            return PyErr_Format(PyExc_ValueError, "%s takes %zu arguments", name, strlen(FORMS[op].arguments)), -1;
        int32_t *places[] = {&code->a, &code->b, &code->c}, target = program->inputs + program->constants + (int32_t)i;
        for (Py_ssize_t place = 0; place < count; place++) {
            int64_t from;
            if (take_whole(PyTuple_GET_ITEM(arguments, place), &from)) return -1;
            if (from < 0 || from >= target) return refuse("an instruction reads a register that is not before it");
            char wanted = FORMS[op].arguments[place];
            if (wanted != ANY && wanted != program->kinds[from])
                return PyErr_Format(PyExc_ValueError, "%s: argument %zd is of another kind", name, place), -1;
            *places[place] = (int32_t)from;
        }
        if (bad_immediate(program, code)) return PyErr_Format(PyExc_ValueError, "%s: its number is wrong", name), -1;
        program->kinds[target] = FORMS[op].result;
        program->names_zones |= op == OP_LOCALBY;
        program->codes++;
    }
    return 0;
}

static int add_outputs(Object *self, PyObject *outputs) {
    Program *program = &self->program;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(outputs); i++) {
        int from;
        const char *type;
        if (!PyTuple_Check(PyTuple_GET_ITEM(outputs, i))) return refuse("an output is (register, type)");
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(outputs, i), "is", &from, &type)) return -1;
        if (!(self->output_types[i] = letter(type, TYPES))) return -1;
        if (from < 0 || from >= program->registers) return refuse("an output of no register");
        if (program->kinds[from] != kind_of(self->output_types[i])) return refuse("an output is of another kind");
        self->output[i] = from;
        self->outputs++;
    }
    return 0;
}

static int fill(Object *self, PyObject *inputs, PyObject *constants, PyObject *tables, PyObject *codes,
                PyObject *outputs) {
    Program *program = &self->program;
    size_t registers = (size_t)(PyTuple_GET_SIZE(inputs) + PyTuple_GET_SIZE(constants) + PyTuple_GET_SIZE(codes));
    self->names = calloc((size_t)PyTuple_GET_SIZE(inputs) + 1, sizeof(PyObject *));
    self->input_types = calloc((size_t)PyTuple_GET_SIZE(inputs) + 1, 1);
    self->constants = calloc((size_t)PyTuple_GET_SIZE(constants) + 1, SLOT);
    self->output = calloc((size_t)PyTuple_GET_SIZE(outputs) + 1, sizeof(int32_t));
    self->output_types = calloc((size_t)PyTuple_GET_SIZE(outputs) + 1, 1);
    program->kinds = calloc(registers + 1, 1);
    program->places = calloc(registers + 1, sizeof(int64_t));
    program->code = calloc((size_t)PyTuple_GET_SIZE(codes) + 1, sizeof(Instruction));
    program->table = calloc((size_t)PyTuple_GET_SIZE(tables) + 1, sizeof(Table));
    program->zones = calloc(MOST_ZONES, sizeof(Zone));
    program->zone_slots = calloc(ZONE_SLOTS, sizeof(int16_t));
    if (!self->names || !self->input_types || !self->constants || !self->output || !self->output_types ||
        !program->kinds || !program->places || !program->code || !program->table || !program->zones ||
        !program->zone_slots)
        return PyErr_NoMemory(), -1;
    if (add_inputs(self, inputs) || add_constants(self, constants) || add_tables(self, tables)) return -1;
    if (add_code(self, codes)) return -1;
    program->registers = (int32_t)registers;
    if (add_outputs(self, outputs)) return -1;
    for (int32_t i = 0; i < program->registers; i++) {
        program->places[i] = program->row_bytes;
        program->row_bytes += value_bytes(program->kinds[i]) + 8; /* 1 byte says whether it is there; aligned */
    }
    return 0;
}

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *given[5], *parts[5] = {NULL};
    static char *names[] = {"inputs", "constants", "tables", "code", "outputs", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO", names, &given[0], &given[1], &given[2], &given[3],
                                     &given[4]))
        return NULL;
    Object *self = (Object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    int failed = 0;
    for (int i = 0; i < 5 && !failed; i++) failed = !(parts[i] = several(given[i], names[i]));
    if (!failed) {
        self->held = PyTuple_Pack(2, parts[1], parts[2]);
        failed = !self->held || fill(self, parts[0], parts[1], parts[2], parts[3], parts[4]);
    }
    for (int i = 0; i < 5; i++) Py_XDECREF(parts[i]);
    if (failed) Py_CLEAR(self);
    return (PyObject *)self;
}

static void dealloc(PyObject *object) {
    Object *self = (Object *)object;
    Program *program = &self->program;
    PyTypeObject *type = Py_TYPE(object);
    for (int32_t i = 0; i < program->inputs; i++) Py_XDECREF(self->names[i]);
    for (int32_t i = 0; i < program->tables; i++) free_table(&program->table[i]);
    for (int32_t i = 0; i < program->zone_count; i++) {
        free(program->zones[i].name);
        free_table(&program->zones[i].table);
    }
    free(self->names), free(self->input_types), free(self->constants), free(self->output), free(self->output_types);
    free(program->kinds), free(program->places), free(program->code), free(program->table), free(program->zones);
    free(program->zone_slots);
    Py_XDECREF(self->held);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- one row ---- */

static int complain(PyObject *error, PyObject *name, const char *what) {
    PyErr_Format(error, "column '%U': %s", name, what);
    return -1;
}

static int fits(int64_t value, char type) {
    switch (type) {
    case 'b': return wrap(value, 8) == value;
    case 'h': return wrap(value, 16) == value;
    case 'i': return wrap(value, 32) == value;
    case 'B': return wrap(value, -8) == value;
    case 'H': return wrap(value, -16) == value;
    case 'I': return wrap(value, -32) == value;
    default: return 1;
    }
}

static int read_value(Object *self, int32_t place, PyObject *value, char *cells, int64_t n) {
    const Program *program = &self->program;
    char type = self->input_types[place];
    PyObject *name = self->names[place];
    char *at = AT(place);
    unsigned char *valid = VALID(place);
    if (value == Py_None) {
        *valid = 0;
        if (type == 's') *(Text *)at = (Text){"", 0};
        else memset(at, 0, 8);
        return 0;
    }
    *valid = 1;
    switch (type) {
    case 'd':
    case 'f':
        if (PyFloat_Check(value)) *(double *)at = PyFloat_AS_DOUBLE(value);
        else if (!PyLong_Check(value) || PyBool_Check(value)) return complain(PyExc_TypeError, name, "expected a number");
        else if (take_float(value, (double *)at)) return -1;
        if (type == 'f') *(double *)at = (double)(float)*(double *)at;
        return 0;
    case '?':
        if (!PyBool_Check(value)) return complain(PyExc_TypeError, name, "expected a truth value");
        *(int64_t *)at = value == Py_True;
        return 0;
    case 's':
        if (!PyUnicode_Check(value)) return complain(PyExc_TypeError, name, "expected a string");
        return take_text(value, (Text *)at);
    case 'D':
        if (!PyDate_Check(value)) return complain(PyExc_TypeError, name, "expected a date");
        *(int64_t *)at =
            days_from_civil(PyDateTime_GET_YEAR(value), PyDateTime_GET_MONTH(value), PyDateTime_GET_DAY(value));
        return 0;
    default: {
        if (!PyLong_Check(value) || PyBool_Check(value))
            return complain(PyExc_TypeError, name, "expected a whole number");
        int overflow;
        *(int64_t *)at = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow || !fits(*(int64_t *)at, type)) return complain(PyExc_OverflowError, name, "too large a number");
        return 0;
    }
    }
}

static PyObject *value_of(const Program *program, int32_t from, char type, char *cells, int64_t n) {
    const char *at = AT(from);
    if (!*VALID(from)) Py_RETURN_NONE;
    switch (type) {
    case 'd':
    case 'f': return PyFloat_FromDouble(*(const double *)at);
    case '?': return PyBool_FromLong(*(const int64_t *)at != 0);
    case 's': return PyUnicode_DecodeUTF8(((const Text *)at)->at, (Py_ssize_t)((const Text *)at)->size, NULL);
    case 'D': {
        Civil date = civil(*(const int64_t *)at);
        return PyDate_FromDate((int)date.year, date.month, date.day);
    }
    default: return PyLong_FromLongLong(*(const int64_t *)at);
    }
}

/* Whether Python has a date for these days since 1970. */
static int in_years(int64_t days) { return days >= FIRST / DAY_US && days <= LAST / DAY_US; }

static void set_constants(Object *self, char *cells, int64_t n) {
    const Program *program = &self->program;
    for (int32_t i = 0; i < program->constants; i++) {
        const char *from = self->constants + i * (int64_t)SLOT;
        int32_t to = program->inputs + i;
        int64_t width = value_bytes(program->kinds[to]);
        for (int64_t row = 0; row < n; row++) memcpy(AT(to) + row * width, from, (size_t)width);
        memset(VALID(to), from[sizeof(Text)], (size_t)n);
    }
}

/* What stands for a status that is not DONE: None where declined, the zone's name where one is not known. */
static PyObject *excuse(Status status, const Scratch *scratch) {
    if (status == DECLINED) Py_RETURN_NONE;
    if (status == NO_ZONE) return PyUnicode_DecodeUTF8(scratch->zone.at, (Py_ssize_t)scratch->zone.size, NULL);
    return PyErr_NoMemory();
}

static PyObject *row(PyObject *object, PyObject *values) {
    Object *self = (Object *)object;
    const Program *program = &self->program;
    if (!PyDict_Check(values)) return PyErr_SetString(PyExc_TypeError, "a row is a dict"), NULL;
    _Alignas(16) char small[8192];
    int64_t n = 1;
    char *cells = program->row_bytes <= (int64_t)sizeof small ? small : malloc((size_t)program->row_bytes);
    if (!cells) return PyErr_NoMemory();
    Scratch scratch = {0};
    PyObject *result = NULL;
    for (int32_t i = 0; i < program->inputs; i++) {
        PyObject *value = PyDict_GetItemWithError(values, self->names[i]);
        if (!value && !PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, self->names[i]);
        if (!value || read_value(self, i, value, cells, n)) goto out;
    }
    set_constants(self, cells, n);
    Status status = run(program, cells, n, &scratch);
    if (status != DONE) {
        result = excuse(status, &scratch);
        goto out;
    }
    for (int32_t i = 0; i < self->outputs; i++)
        if (self->output_types[i] == 'D' && VALID(self->output[i])[0] && !in_years(*(int64_t *)AT(self->output[i]))) {
            result = Py_NewRef(Py_None);
            goto out;
        }
    result = PyTuple_New(self->outputs);
    for (int32_t i = 0; result && i < self->outputs; i++) {
        PyObject *value = value_of(program, self->output[i], self->output_types[i], cells, n);
        if (!value) Py_CLEAR(result);
        else PyTuple_SET_ITEM(result, i, value);
    }
out:
    release(&scratch);
    if (cells != small) free(cells);
    return result;
}

/* ---- many rows ---- */

typedef struct {
    Py_buffer data, validity, ends;
    int64_t offset;
} Column;

static int bit(const unsigned char *bits, int64_t at) { return bits[at >> 3] >> (at & 7) & 1; }

static int open_buffer(PyObject *from, Py_buffer *buffer, int64_t least) {
    if (PyObject_GetBuffer(from, buffer, PyBUF_SIMPLE)) return -1;
    return buffer->len < least ? refuse("a column's buffer is too short") : 0;
}

/* A column is (data, offset, validity or None, text offsets or None), as Arrow lays them out. */
static int open_column(PyObject *given, char type, int64_t rows, Column *column) {
    PyObject *data, *validity, *ends;
    long long offset;
    if (!PyTuple_Check(given)) return refuse("a column is (data, offset, validity, text offsets)");
    if (!PyArg_ParseTuple(given, "OLOO", &data, &offset, &validity, &ends)) return -1;
    if (offset < 0 || offset > INT64_MAX / 64) return refuse("a column's offset is out of range");
    column->offset = offset;
    int64_t last = offset + rows;
    if (open_buffer(data, &column->data, type == 's' ? 0 : type == '?' ? (last + 7) / 8 : last * width_of(type)))
        return -1;
    if ((ends != Py_None) != (type == 's')) return refuse("texts, and they alone, have offsets");
    if (validity != Py_None && open_buffer(validity, &column->validity, (last + 7) / 8)) return -1;
    if (ends == Py_None) return 0;
    if (open_buffer(ends, &column->ends, (last + 1) * 8)) return -1;
    for (int64_t i = offset; i <= last; i++) {
        int64_t end, before = 0;
        memcpy(&end, (char *)column->ends.buf + 8 * i, 8);
        if (i > offset) memcpy(&before, (char *)column->ends.buf + 8 * (i - 1), 8);
        if (end < before || end > column->data.len) return refuse("a text's offsets are out of range");
    }
    return 0;
}

#define LOAD(type, out)                                                                                                \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        type value;                                                                                                    \
        memcpy(&value, data + (first + i) * (int64_t)sizeof(type), sizeof(type));                                      \
        ((out *)at)[i] = value;                                                                                        \
    }                                                                                                                  \
    break

static void load(const Program *program, int32_t place, char type, const Column *column, int64_t from, char *cells,
                 int64_t n) {
    const char *data = column->data.buf;
    char *at = AT(place);
    unsigned char *valid = VALID(place);
    int64_t first = column->offset + from;
    if (column->validity.buf) {
        for (int64_t i = 0; i < n; i++) valid[i] = (unsigned char)bit(column->validity.buf, first + i);
    } else {
        memset(valid, 1, (size_t)n);
    }
    switch (type) {
    case 'd': LOAD(double, double);
    case 'f': LOAD(float, double);
    case 'q':
    case 'T': LOAD(int64_t, int64_t);
    case 'i':
    case 'D': LOAD(int32_t, int64_t);
    case 'h': LOAD(int16_t, int64_t);
    case 'b': LOAD(int8_t, int64_t);
    case 'I': LOAD(uint32_t, int64_t);
    case 'H': LOAD(uint16_t, int64_t);
    case 'B': LOAD(uint8_t, int64_t);
    case '?':
        for (int64_t i = 0; i < n; i++) ((int64_t *)at)[i] = bit((const unsigned char *)data, first + i);
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            int64_t start, end;
            memcpy(&start, (const char *)column->ends.buf + 8 * (first + i), 8);
            memcpy(&end, (const char *)column->ends.buf + 8 * (first + i + 1), 8);
            ((Text *)at)[i] = valid[i] && end > start ? (Text){data + start, end - start} : (Text){"", 0};
        }
    }
}

/* A column of results being written: `data` grows for texts, `ends` are their offsets. */
typedef struct {
    char *data, *validity;
    int64_t *ends;
    int64_t used, room;
    int nulls;
} Result;

#define STORE(type, in)                                                                                                \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        type value = valid[i] ? (type)((const in *)at)[i] : 0;                                                         \
        memcpy(result->data + (from + i) * (int64_t)sizeof(type), &value, sizeof(type));                               \
    }                                                                                                                  \
    break

static Status store(const Program *program, int32_t place, char type, Result *result, int64_t from, char *cells,
                    int64_t n) {
    const char *at = AT(place);
    const unsigned char *valid = VALID(place);
    for (int64_t i = 0; i < n; i++) {
        if (valid[i]) result->validity[(from + i) >> 3] |= (char)(1 << ((from + i) & 7));
        else result->nulls = 1;
    }
    switch (type) {
    case 'd': STORE(double, double);
    case 'f': STORE(float, double);
    case 'q':
    case 'T': STORE(int64_t, int64_t);
    case 'i':
    case 'D': STORE(int32_t, int64_t);
    case 'h': STORE(int16_t, int64_t);
    case 'b': STORE(int8_t, int64_t);
    case 'I': STORE(uint32_t, int64_t);
    case 'H': STORE(uint16_t, int64_t);
    case 'B': STORE(uint8_t, int64_t);
    case '?':
        for (int64_t i = 0; i < n; i++)
            if (valid[i] && ((const int64_t *)at)[i]) result->data[(from + i) >> 3] |= (char)(1 << ((from + i) & 7));
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            Text text = valid[i] ? ((const Text *)at)[i] : (Text){"", 0};
            if (text.size > result->room - result->used) {
                int64_t room = 2 * result->room + text.size + 1024;
                char *larger = realloc(result->data, (size_t)room);
                if (!larger) return NO_MEMORY;
                result->data = larger;
                result->room = room;
            }
            if (text.size) memcpy(result->data + result->used, text.at, (size_t)text.size);
            result->ends[from + i + 1] = result->used += text.size;
        }
    }
    return DONE;
}

static int open_result(char type, int64_t rows, Result *result) {
    int64_t size = type == '?' ? (rows + 7) / 8 : rows * width_of(type);
    result->data = calloc((size_t)size + 1, 1);
    result->validity = calloc((size_t)(rows + 7) / 8 + 1, 1);
    if (type == 's') result->ends = calloc((size_t)rows + 1, 8);
    result->used = type == 's' ? 0 : size;
    result->room = type == 's' ? 1 : size;
    return result->data && result->validity && (type != 's' || result->ends) ? 0 : -1;
}

/* (validity or None, data, text offsets or None), as Arrow lays them out. */
static PyObject *close_result(const Result *result, int64_t rows) {
    PyObject *validity = NULL, *ends = NULL;
    if (result->nulls) validity = PyBytes_FromStringAndSize(result->validity, (Py_ssize_t)(rows + 7) / 8);
    else validity = Py_NewRef(Py_None);
    if (result->ends) ends = PyBytes_FromStringAndSize((char *)result->ends, (Py_ssize_t)(rows + 1) * 8);
    else ends = Py_NewRef(Py_None);
    PyObject *data = PyBytes_FromStringAndSize(result->data, (Py_ssize_t)result->used);
    PyObject *all = validity && data && ends ? PyTuple_Pack(3, validity, data, ends) : NULL;
    Py_XDECREF(validity), Py_XDECREF(data), Py_XDECREF(ends);
    return all;
}

static Status run_blocks(Object *self, Column *columns, Result *results, int64_t rows, Scratch *scratch) {
    const Program *program = &self->program;
    int64_t most = rows < BLOCK ? rows : BLOCK;
    char *cells = malloc((size_t)(program->row_bytes * most) + 16);
    if (!cells) return NO_MEMORY;
    Status status = DONE;
    int64_t filled = 0;
    for (int64_t from = 0; from < rows && status == DONE; from += BLOCK) {
        int64_t n = rows - from < BLOCK ? rows - from : BLOCK;
        if (n != filled) set_constants(self, cells, filled = n); /* where registers lie depends on n */
        for (int32_t i = 0; i < program->inputs; i++)
            load(program, i, self->input_types[i], &columns[i], from, cells, n);
        status = run(program, cells, n, scratch);
        for (int32_t i = 0; i < self->outputs && status == DONE; i++)
            status = store(program, self->output[i], self->output_types[i], &results[i], from, cells, n);
        if (status != NO_ZONE) release(scratch);
    }
    free(cells);
    return status;
}

static PyObject *columns(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Object *self = (Object *)object;
    const Program *program = &self->program;
    if (count != 2) return PyErr_SetString(PyExc_TypeError, "columns takes the columns and the number of rows"), NULL;
    int64_t rows;
    if (take_whole(args[1], &rows)) return NULL;
    if (rows < 0 || rows > INT32_MAX) return refuse("the number of rows is out of range"), NULL;
    PyObject *given = several(args[0], "columns");
    if (!given) return NULL;
    PyObject *out = NULL;
    Column *inputs = calloc((size_t)program->inputs + 1, sizeof(Column));
    Result *results = calloc((size_t)self->outputs + 1, sizeof(Result));
    Scratch scratch = {0};
    if (!inputs || !results) {
        PyErr_NoMemory();
        goto out;
    }
    if (PyTuple_GET_SIZE(given) != program->inputs) {
        refuse("another number of columns than inputs");
        goto out;
    }
    for (int32_t i = 0; i < program->inputs; i++)
        if (open_column(PyTuple_GET_ITEM(given, i), self->input_types[i], rows, &inputs[i])) goto out;
    for (int32_t i = 0; i < self->outputs; i++)
        if (open_result(self->output_types[i], rows, &results[i])) {
            PyErr_NoMemory();
            goto out;
        }
    Status status;
    if (program->names_zones) { /* zones may be added meanwhile */
        status = run_blocks(self, inputs, results, rows, &scratch);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        status = run_blocks(self, inputs, results, rows, &scratch);
        Py_END_ALLOW_THREADS;
    }
    if (status != DONE) {
        out = excuse(status, &scratch);
        goto out;
    }
    out = PyList_New(self->outputs);
    for (int32_t i = 0; out && i < self->outputs; i++) {
        PyObject *result = close_result(&results[i], rows);
        if (!result) Py_CLEAR(out);
        else PyList_SET_ITEM(out, i, result);
    }
out:
    release(&scratch);
    for (int32_t i = 0; inputs && i < program->inputs; i++) {
        PyBuffer_Release(&inputs[i].data);
        PyBuffer_Release(&inputs[i].validity);
        PyBuffer_Release(&inputs[i].ends);
    }
    for (int32_t i = 0; results && i < self->outputs; i++)
        free(results[i].data), free(results[i].validity), free(results[i].ends);
    free(inputs);
    free(results);
    Py_DECREF(given);
    return out;
}

/* ---- zones that columns name ---- */

static PyObject *add_zone(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Program *program = &((Object *)object)->program;
    Text name;
    if (count != 3) return PyErr_SetString(PyExc_TypeError, "add_zone takes a name, changes and offsets"), NULL;
    if (take_text(args[0], &name)) return NULL;
    int16_t *slot = zone_slot(program, name);
    if (*slot) Py_RETURN_TRUE;
    if (program->zone_count == MOST_ZONES) Py_RETURN_FALSE;
    Zone zone = {.size = name.size, .known = args[1] != Py_None};
    if (zone.known && make_table(&zone.table, 'z', args[1], args[2])) return free_table(&zone.table), NULL;
    if (!(zone.name = malloc((size_t)name.size + 1))) return free_table(&zone.table), PyErr_NoMemory();
    memcpy(zone.name, name.at, (size_t)name.size);
    program->zones[program->zone_count] = zone;
    *slot = (int16_t)++program->zone_count;
    Py_RETURN_TRUE;
}

/* ---- the module ---- */

static PyObject *xxh64_of(PyObject *module, PyObject *value) {
    (void)module;
    Py_buffer buffer;
    if (PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE)) return NULL;
    uint64_t hash = xxh64(buffer.len ? buffer.buf : "", buffer.len);
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(hash);
}

static PyMethodDef object_methods[] = {
    {"row", row, METH_O, "row(values) -> outputs, None when declined, or the name of a zone that is wanted."},
    {"columns", (PyCFunction)(void (*)(void))columns, METH_FASTCALL, "columns(columns, rows) -> columns; as row."},
    {"add_zone", (PyCFunction)(void (*)(void))add_zone, METH_FASTCALL,
     "add_zone(name, changes or None, offsets) -> False when there are too many."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot object_slots[] = {
    {Py_tp_new, new},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, object_methods},
    {Py_tp_doc, "Program(inputs, constants, tables, code, outputs)"},
    {0, NULL},
};

static PyType_Spec object_spec = {
    .name = "tidemill.kernels._expressions.Program",
    .basicsize = sizeof(Object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = object_slots,
};

static int execute(PyObject *module) {
    PyDateTime_IMPORT;
    if (!PyDateTimeAPI) return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, &object_spec, NULL);
    int failed = !type || PyModule_AddObjectRef(module, "Program", type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyMethodDef module_methods[] = {
    {"xxh64", xxh64_of, METH_O, "xxh64(bytes) -> int"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_expressions", .m_size = 0, .m_methods = module_methods, .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__expressions(void) { return PyModuleDef_Init(&module); }
