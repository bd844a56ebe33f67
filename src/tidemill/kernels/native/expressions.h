/* On-demand expressions: programs over the columns of one row, run on one row or on many.
 *
 * A program is a list of instructions in single assignment. Registers hold, for each row of a block, a float64, an
 * int64 (whole numbers, truth values, microseconds, days) or a text, and whether there is a value. The first registers
 * are the inputs, then the constants, then one for the result of each instruction, which reads earlier ones only; so a
 * program that was accepted cannot run away. One row is a block of one: a row and a batch go through the same loops.
 *
 * A program may decline (a strict cast that fails, letters beyond ASCII, a time out of the calendar): the caller then
 * computes the rows by the definition. `kernels/expressions.py` is the same program interpreted in plain Python.
 */

#ifndef TIDEMILL_EXPRESSIONS_H
#define TIDEMILL_EXPRESSIONS_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 128
#define MOST_ZONES 2048
#define ZONE_SLOTS 4096 /* a power of two, twice as many */
#define FIRST -62135596800000000LL /* the calendar is asked for the years 1 to 9999, in microseconds from 1970 */
#define LAST 253402300799999999LL

typedef enum { FLOAT = 'f', WHOLE = 'i', TEXT = 's', ANY = '?' } Kind;

typedef struct {
    const char *at;
    int64_t size;
} Text;

/* ---- instructions: name, kinds of arguments, kind of result, what `imm` means ---- */
/* imm: '-' unused (0), 't' a set of the arguments' kind, 'z' a zone table, 'w' a width, 'n' any number */
#define OPERATIONS(X)                                                                                                  \
    X(FADD, "ff", 'f', '-') X(FSUB, "ff", 'f', '-') X(FMUL, "ff", 'f', '-') X(FDIV, "ff", 'f', '-')                    \
    X(FFLOORDIV, "ff", 'f', '-') X(FMOD, "ff", 'f', '-') X(FPOW, "ff", 'f', '-')                                       \
    X(FSINGLE, "f", 'f', '-') X(FNEG, "f", 'f', '-') X(FABS, "f", 'f', '-') X(FSIGN, "f", 'f', '-')                    \
    X(FFLOOR, "f", 'f', '-') X(FCEIL, "f", 'f', '-') X(FEVEN, "f", 'f', '-') X(FAWAY, "f", 'f', '-')                   \
    X(FSQRT, "f", 'f', '-') X(FEXP, "f", 'f', '-') X(FLOG, "f", 'f', '-') X(FLOG1P, "f", 'f', '-')                     \
    X(FSIN, "f", 'f', '-') X(FCOS, "f", 'f', '-') X(FTAN, "f", 'f', '-')                                               \
    X(FASIN, "f", 'f', '-') X(FACOS, "f", 'f', '-') X(FATAN, "f", 'f', '-')                                            \
    X(FISNAN, "f", 'i', '-') X(FISFINITE, "f", 'i', '-') X(FISINF, "f", 'i', '-')                                      \
    X(FEQ, "ff", 'i', '-') X(FLT, "ff", 'i', '-') X(FLE, "ff", 'i', '-')                                               \
    X(FMIN, "ff", 'f', '-') X(FMAX, "ff", 'f', '-') X(FLEAST, "ff", 'f', '-') X(FMOST, "ff", 'f', '-')                 \
    X(FIN, "f", 'i', 't') X(FTOWHOLE, "f", 'i', 'n') X(FTRUTH, "f", 'i', '-')                                          \
    X(IADD, "ii", 'i', '-') X(ISUB, "ii", 'i', '-') X(IMUL, "ii", 'i', '-') X(IFLOORDIV, "ii", 'i', '-')               \
    X(IMOD, "ii", 'i', '-') X(ITRUNCDIV, "ii", 'i', '-') X(IPOW, "i", 'i', 'n')                                        \
    X(INEG, "i", 'i', '-') X(IABS, "i", 'i', '-') X(ISIGN, "i", 'i', '-') X(IWRAP, "i", 'i', 'w')                      \
    X(IFITS, "i", 'i', 'w') X(IMUST, "i", 'i', 'w') X(ITOFLOAT, "i", 'f', '-') X(ITOSINGLE, "i", 'f', '-')             \
    X(ITRUTH, "i", 'i', '-') X(ITOTEXT, "i", 's', '-')                                                                 \
    X(IEQ, "ii", 'i', '-') X(ILT, "ii", 'i', '-') X(ILE, "ii", 'i', '-')                                               \
    X(IMIN, "ii", 'i', '-') X(IMAX, "ii", 'i', '-') X(ILEAST, "ii", 'i', '-') X(IMOST, "ii", 'i', '-')                 \
    X(IIN, "i", 'i', 't')                                                                                              \
    X(AND, "ii", 'i', '-') X(OR, "ii", 'i', '-') X(XOR, "ii", 'i', '-') X(NOT, "i", 'i', '-')                          \
    X(ISNULL, "?", 'i', '-') X(NOTNULL, "?", 'i', '-')                                                                 \
    X(FIF, "iff", 'f', '-') X(IIF, "iii", 'i', '-') X(SIF, "iss", 's', '-')                                            \
    X(FFILL, "ff", 'f', '-') X(IFILL, "ii", 'i', '-') X(SFILL, "ss", 's', '-')                                         \
    X(SEQ, "ss", 'i', '-') X(SLT, "ss", 'i', '-') X(SLE, "ss", 'i', '-') X(SIN, "s", 'i', 't')                         \
    X(SCHARS, "s", 'i', '-') X(SBYTES, "s", 'i', '-') X(SLOWER, "s", 's', '-') X(SUPPER, "s", 's', '-')                \
    X(SSTARTS, "ss", 'i', '-') X(SENDS, "ss", 'i', '-') X(SCONTAINS, "ss", 'i', '-') X(SJOIN, "ss", 's', '-')          \
    X(LOCAL, "i", 'i', 'z') X(LOCALBY, "is", 'i', '-') X(FROMDAYS, "i", 'i', '-') X(TODAYS, "i", 'i', '-')             \
    X(HOUR, "i", 'i', '-') X(MINUTE, "i", 'i', '-') X(SECOND, "i", 'i', '-') X(MICROSECOND, "i", 'i', '-')             \
    X(WEEKDAY, "i", 'i', '-') X(DAY, "i", 'i', '-') X(MONTH, "i", 'i', '-') X(YEAR, "i", 'i', '-')                     \
    X(ORDINAL, "i", 'i', '-') X(WEEK, "i", 'i', '-') X(ISOYEAR, "i", 'i', '-') X(QUARTER, "i", 'i', '-')               \
    X(LEAP, "i", 'i', '-') X(SBUCKET, "s", 'i', 'n') X(IBUCKET, "i", 'i', 'n')

#define X(name, arguments, result, imm) OP_##name,
typedef enum { OPERATIONS(X) OP_COUNT } Op;
#undef X

static const struct {
    const char *name;
    const char *arguments;
    char result, imm;
} FORMS[] = {
#define X(name, arguments, result, imm) {#name, arguments, result, imm},
    OPERATIONS(X)
#undef X
};

typedef struct {
    int32_t op, a, b, c, imm;
} Instruction;

typedef struct {
    char kind; /* FLOAT, WHOLE, TEXT: a sorted set; 'z': a zone */
    int64_t size;
    void *items; /* double, int64_t, Text; for a zone the times of its changes, microseconds UTC, ascending */
    int64_t *offsets; /* of a zone: size + 1, microseconds, before the first change and after each */
} Table;

/* A zone that a column may name; without a table where there is none of that name. */
typedef struct {
    char *name;
    int64_t size;
    int known;
    Table table;
} Zone;

typedef struct {
    int32_t inputs, constants, codes, registers;
    char *kinds;       /* of the registers */
    int64_t *places;   /* bytes before each register, for one row */
    int64_t row_bytes; /* of all registers, for one row */
    Instruction *code;
    int32_t tables;
    Table *table;
    int names_zones; /* an instruction reads a zone's name from a column */
    int32_t zone_count;
    Zone *zones;
    int16_t *zone_slots; /* hash table of ZONE_SLOTS: 1 + the place in zones, or 0 */
} Program;

typedef enum { DONE, DECLINED, NO_ZONE, NO_MEMORY } Status;

typedef struct Chunk {
    struct Chunk *next;
    size_t used, size;
    char bytes[];
} Chunk;

typedef struct {
    Chunk *chunks;
    Text zone; /* the name that NO_ZONE is about */
} Scratch;

static char *reserve(Scratch *scratch, size_t size) {
    Chunk *chunk = scratch->chunks;
    if (!chunk || chunk->size - chunk->used < size) {
        size_t room = size > 4096 ? size : 4096;
        if (!(chunk = malloc(sizeof(Chunk) + room))) return NULL;
        *chunk = (Chunk){.next = scratch->chunks, .used = 0, .size = room};
        scratch->chunks = chunk;
    }
    chunk->used += size;
    return chunk->bytes + chunk->used - size;
}

static void release(Scratch *scratch) {
    while (scratch->chunks) {
        Chunk *next = scratch->chunks->next;
        free(scratch->chunks);
        scratch->chunks = next;
    }
}

/* ---- arithmetic ---- */

static inline int64_t wrap(int64_t x, int32_t width) {
    switch (width) {
    case 8: return (int8_t)(uint8_t)(uint64_t)x;
    case 16: return (int16_t)(uint16_t)(uint64_t)x;
    case 32: return (int32_t)(uint32_t)(uint64_t)x;
    case -8: return (uint8_t)(uint64_t)x;
    case -16: return (uint16_t)(uint64_t)x;
    case -32: return (uint32_t)(uint64_t)x;
    default: return x;
    }
}

static inline int64_t floor_quotient(int64_t a, int64_t b) {
    if (b == -1) return (int64_t)(0 - (uint64_t)a);
    int64_t quotient = a / b;
    return quotient - ((a % b != 0) & ((a < 0) != (b < 0)));
}

static inline int64_t floor_rest(int64_t a, int64_t b) {
    if (b == -1) return 0;
    int64_t rest = a % b;
    return rest != 0 && ((rest < 0) != (b < 0)) ? rest + b : rest;
}

static inline int64_t power(int64_t base, int32_t exponent) {
    uint64_t result = 1, factor = (uint64_t)base;
    for (; exponent > 0; exponent >>= 1, factor *= factor)
        if (exponent & 1) result *= factor;
    return (int64_t)result;
}

/* Polars' total order: NaN equals itself and is above everything; zeros are equal. */
static inline int same(double a, double b) { return (a == b) | ((a != a) & (b != b)); }
static inline int below(double a, double b) { return (a < b) | ((a == a) & (b != b)); }

/* ---- XXH64 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), seed 0 ---- */

#define PRIME1 0x9E3779B185EBCA87ULL
#define PRIME2 0xC2B2AE3D27D4EB4FULL
#define PRIME3 0x165667B19E3779F9ULL
#define PRIME4 0x85EBCA77C2B2AE63ULL
#define PRIME5 0x27D4EB2F165667C5ULL

static inline uint64_t rotate(uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }
static inline uint64_t turn(uint64_t lane, uint64_t input) { return rotate(lane + input * PRIME2, 31) * PRIME1; }

static inline uint64_t little(const unsigned char *at, int bytes) {
    uint64_t value = 0;
    for (int i = bytes; i-- > 0;) value = value << 8 | at[i];
    return value;
}

static uint64_t xxh64(const void *input, int64_t size) {
    const unsigned char *at = input, *end = at + size;
    uint64_t hash;
    if (size >= 32) {
        uint64_t lanes[4] = {PRIME1 + PRIME2, PRIME2, 0, 0 - PRIME1};
        for (; end - at >= 32; at += 32)
            for (int lane = 0; lane < 4; lane++) lanes[lane] = turn(lanes[lane], little(at + 8 * lane, 8));
        hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
        for (int lane = 0; lane < 4; lane++) hash = (hash ^ turn(0, lanes[lane])) * PRIME1 + PRIME4;
    } else {
        hash = PRIME5;
    }
    hash += (uint64_t)size;
    for (; end - at >= 8; at += 8) hash = rotate(hash ^ turn(0, little(at, 8)), 27) * PRIME1 + PRIME4;
    if (end - at >= 4) {
        hash = rotate(hash ^ little(at, 4) * PRIME1, 23) * PRIME2 + PRIME3;
        at += 4;
    }
    for (; at < end; at++) hash = rotate(hash ^ *at * PRIME5, 11) * PRIME1;
    hash = (hash ^ hash >> 33) * PRIME2;
    hash = (hash ^ hash >> 29) * PRIME3;
    return hash ^ hash >> 32;
}

static inline int64_t bucket_of_whole(int64_t x, int32_t buckets) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)x >> (8 * i));
    return (int64_t)(xxh64(bytes, 8) % (uint64_t)buckets);
}

/* ---- texts ---- */

static int order(Text a, Text b) {
    int64_t shorter = a.size < b.size ? a.size : b.size;
    int first = shorter ? memcmp(a.at, b.at, (size_t)shorter) : 0;
    return first ? first : (a.size > b.size) - (a.size < b.size);
}

static int equal(Text a, Text b) { return a.size == b.size && (!a.size || !memcmp(a.at, b.at, (size_t)a.size)); }

static int64_t characters(Text text) {
    int64_t count = 0;
    for (int64_t i = 0; i < text.size; i++) count += ((unsigned char)text.at[i] & 0xC0) != 0x80;
    return count;
}

static int contains(Text text, Text part) {
    if (!part.size) return 1;
    const char *at = text.at, *last = text.at + text.size - part.size;
    while (text.size >= part.size && at <= last) {
        const char *found = memchr(at, part.at[0], (size_t)(last - at) + 1);
        if (!found) return 0;
        if (!memcmp(found, part.at, (size_t)part.size)) return 1;
        at = found + 1;
    }
    return 0;
}

/* ---- calendar: days to civil dates after Howard Hinnant, https://howardhinnant.github.io/date_algorithms.html ---- */

#define SECOND_US 1000000LL
#define DAY_US (86400 * SECOND_US)

typedef struct {
    int64_t year;
    int month, day, ordinal; /* ordinal: day of the year, from 1 */
} Civil;

static inline int leap(int64_t year) { return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0; }

static int ordinal_of(int64_t year, int month, int day) {
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    return before[month - 1] + day + (month > 2 && leap(year));
}

static Civil civil(int64_t days) {
    int64_t shifted = days + 719468; /* from 0000-03-01 */
    int64_t era = floor_quotient(shifted, 146097), in_era = shifted - era * 146097;
    int64_t year_of_era = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    int64_t in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int month_from_march = (int)((5 * in_year + 2) / 153);
    Civil result;
    result.day = (int)(in_year - (153 * month_from_march + 2) / 5) + 1;
    result.month = month_from_march < 10 ? month_from_march + 3 : month_from_march - 9;
    result.year = year_of_era + era * 400 + (result.month <= 2);
    result.ordinal = ordinal_of(result.year, result.month, result.day);
    return result;
}

static int64_t days_from_civil(int64_t year, int month, int day) {
    year -= month <= 2;
    int64_t era = floor_quotient(year, 400), year_of_era = year - era * 400;
    int64_t in_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + in_year - 719468;
}

static inline int64_t weekday(int64_t days) { return floor_rest(days + 3, 7) + 1; } /* Monday is 1 */

/* The ISO week's year, and the week. */
static int64_t iso_week(int64_t days, int64_t *year) {
    int64_t thursday = days + 4 - weekday(days);
    Civil date = civil(thursday);
    *year = date.year;
    return (date.ordinal - 1) / 7 + 1;
}

static int64_t calendar(Op op, int64_t time) {
    int64_t days = floor_quotient(time, DAY_US), within = time - days * DAY_US, year;
    switch (op) {
    case OP_HOUR: return within / (3600 * SECOND_US);
    case OP_MINUTE: return within / (60 * SECOND_US) % 60;
    case OP_SECOND: return within / SECOND_US % 60;
    case OP_MICROSECOND: return within % SECOND_US;
    case OP_WEEKDAY: return weekday(days);
    case OP_WEEK: return iso_week(days, &year);
    case OP_ISOYEAR: iso_week(days, &year); return year;
    default: break;
    }
    Civil date = civil(days);
    switch (op) {
    case OP_DAY: return date.day;
    case OP_MONTH: return date.month;
    case OP_YEAR: return date.year;
    case OP_ORDINAL: return date.ordinal;
    case OP_QUARTER: return (date.month + 2) / 3;
    default: return leap(date.year);
    }
}

static int64_t offset_at(const Table *zone, int64_t time) {
    const int64_t *changes = zone->items;
    int64_t low = 0, high = zone->size; /* the number of changes at or before the time */
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (changes[middle] <= time) low = middle + 1;
        else high = middle;
    }
    return zone->offsets[low];
}

/* The slot of a zone's name: where it is, or the free one where it belongs. */
static int16_t *zone_slot(const Program *program, Text name) {
    for (uint64_t slot = xxh64(name.at, name.size);; slot++) {
        int16_t *at = &program->zone_slots[slot % ZONE_SLOTS];
        if (!*at) return at;
        const Zone *zone = &program->zones[*at - 1];
        if (zone->size == name.size && !memcmp(zone->name, name.at, (size_t)name.size)) return at;
    }
}

static int in_floats(const Table *set, double x) {
    const double *items = set->items;
    int64_t low = 0, high = set->size;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (below(items[middle], x)) low = middle + 1;
        else high = middle;
    }
    return low < set->size && same(items[low], x);
}

static int in_wholes(const Table *set, int64_t x) {
    const int64_t *items = set->items;
    int64_t low = 0, high = set->size;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (items[middle] < x) low = middle + 1;
        else high = middle;
    }
    return low < set->size && items[low] == x;
}

static int in_texts(const Table *set, Text x) {
    const Text *items = set->items;
    int64_t low = 0, high = set->size;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (order(items[middle], x) < 0) low = middle + 1;
        else high = middle;
    }
    return low < set->size && equal(items[low], x);
}

/* ---- the interpreter ---- */

#define AT(reg) (cells + program->places[reg] * n)
#define VALID(reg) ((unsigned char *)AT(reg) + value_bytes(program->kinds[reg]) * n)

static inline int64_t value_bytes(char kind) { return kind == TEXT ? (int64_t)sizeof(Text) : 8; }

/* `value` is for every row, also those without one, whose contents are zeros or leftovers of the same kind. */
#define EACH1(out, in, value)                                                                                          \
    do {                                                                                                               \
        const in *restrict x = (const in *)a;                                                                          \
        out *restrict r = (out *)d;                                                                                    \
        for (int64_t i = 0; i < n; i++) r[i] = (value);                                                                \
        memcpy(dv, av, (size_t)n);                                                                                     \
    } while (0)
#define EACH2(out, in, value)                                                                                          \
    do {                                                                                                               \
        const in *x = (const in *)a, *y = (const in *)b;                                                               \
        out *restrict r = (out *)d;                                                                                    \
        for (int64_t i = 0; i < n; i++) r[i] = (value);                                                                \
        for (int64_t i = 0; i < n; i++) dv[i] = av[i] & bv[i];                                                         \
    } while (0)
#define CHOOSE2(type, take_left)                                                                                       \
    do {                                                                                                               \
        const type *x = (const type *)a, *y = (const type *)b;                                                         \
        type *restrict r = (type *)d;                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            r[i] = !bv[i] || (av[i] && (take_left)) ? x[i] : y[i];                                                     \
            dv[i] = av[i] | bv[i];                                                                                     \
        }                                                                                                              \
    } while (0)
#define IF3(type)                                                                                                      \
    do {                                                                                                               \
        const int64_t *condition = (const int64_t *)a;                                                                 \
        const type *x = (const type *)b, *y = (const type *)c;                                                         \
        type *restrict r = (type *)d;                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            int yes = av[i] && condition[i];                                                                           \
            r[i] = yes ? x[i] : y[i];                                                                                  \
            dv[i] = yes ? bv[i] : cv[i];                                                                               \
        }                                                                                                              \
    } while (0)

static Status step(const Program *program, const Instruction *code, int32_t target, char *cells, int64_t n,
                   Scratch *scratch) {
    char *d = AT(target), *a = AT(code->a), *b = AT(code->b), *c = AT(code->c);
    unsigned char *dv = VALID(target), *av = VALID(code->a), *bv = VALID(code->b), *cv = VALID(code->c);
    const Table *table = FORMS[code->op].imm == 't' || FORMS[code->op].imm == 'z' ? &program->table[code->imm] : NULL;
    switch ((Op)code->op) {
    case OP_FADD: EACH2(double, double, x[i] + y[i]); break;
    case OP_FSUB: EACH2(double, double, x[i] - y[i]); break;
    case OP_FMUL: EACH2(double, double, x[i] * y[i]); break;
    case OP_FDIV: EACH2(double, double, x[i] / y[i]); break;
    case OP_FFLOORDIV: EACH2(double, double, floor(x[i] / y[i])); break;
    case OP_FMOD: EACH2(double, double, x[i] - y[i] * floor(x[i] / y[i])); break;
    case OP_FPOW: EACH2(double, double, pow(x[i], y[i])); break;
    case OP_FSINGLE: EACH1(double, double, (double)(float)x[i]); break;
    case OP_FNEG: EACH1(double, double, -x[i]); break;
    case OP_FABS: EACH1(double, double, fabs(x[i])); break;
    case OP_FSIGN: EACH1(double, double, x[i] != x[i] || x[i] == 0 ? x[i] : copysign(1.0, x[i])); break;
    case OP_FFLOOR: EACH1(double, double, floor(x[i])); break;
    case OP_FCEIL: EACH1(double, double, ceil(x[i])); break;
    case OP_FEVEN: EACH1(double, double, rint(x[i])); break;
    case OP_FAWAY: EACH1(double, double, round(x[i])); break;
    case OP_FSQRT: EACH1(double, double, sqrt(x[i])); break;
    case OP_FEXP: EACH1(double, double, exp(x[i])); break;
    case OP_FLOG: EACH1(double, double, log(x[i])); break;
    case OP_FLOG1P: EACH1(double, double, log1p(x[i])); break;
    case OP_FSIN: EACH1(double, double, sin(x[i])); break;
    case OP_FCOS: EACH1(double, double, cos(x[i])); break;
    case OP_FTAN: EACH1(double, double, tan(x[i])); break;
    case OP_FASIN: EACH1(double, double, asin(x[i])); break;
    case OP_FACOS: EACH1(double, double, acos(x[i])); break;
    case OP_FATAN: EACH1(double, double, atan(x[i])); break;
    case OP_FISNAN: EACH1(int64_t, double, x[i] != x[i]); break;
    case OP_FISFINITE: EACH1(int64_t, double, isfinite(x[i]) != 0); break;
    case OP_FISINF: EACH1(int64_t, double, isinf(x[i]) != 0); break;
    case OP_FEQ: EACH2(int64_t, double, same(x[i], y[i])); break;
    case OP_FLT: EACH2(int64_t, double, below(x[i], y[i])); break;
    case OP_FLE: EACH2(int64_t, double, !below(y[i], x[i])); break;
    case OP_FMIN: CHOOSE2(double, y[i] != y[i] || x[i] < y[i]); break;
    case OP_FMAX: CHOOSE2(double, y[i] != y[i] || x[i] > y[i]); break;
    case OP_FLEAST: EACH2(double, double, x[i] < y[i] ? y[i] : x[i]); break;
    case OP_FMOST: EACH2(double, double, x[i] > y[i] ? y[i] : x[i]); break;
    case OP_FIN: EACH1(int64_t, double, in_floats(table, x[i])); break;
    case OP_FTRUTH: EACH1(int64_t, double, x[i] != 0); break;
    case OP_FTOWHOLE: { /* towards zero; what does not fit declines (imm) or is null */
        const double *x = (const double *)a;
        int64_t *r = (int64_t *)d;
        for (int64_t i = 0; i < n; i++) {
            int fits = x[i] >= -0x1p63 && x[i] < 0x1p63;
            if (!fits && av[i] && code->imm) return DECLINED;
            r[i] = fits ? (int64_t)x[i] : 0;
            dv[i] = av[i] & (unsigned char)fits;
        }
        break;
    }
    case OP_IADD: EACH2(int64_t, int64_t, (int64_t)((uint64_t)x[i] + (uint64_t)y[i])); break;
    case OP_ISUB: EACH2(int64_t, int64_t, (int64_t)((uint64_t)x[i] - (uint64_t)y[i])); break;
    case OP_IMUL: EACH2(int64_t, int64_t, (int64_t)((uint64_t)x[i] * (uint64_t)y[i])); break;
    case OP_IFLOORDIV:
    case OP_IMOD:
    case OP_ITRUNCDIV: {
        const int64_t *x = (const int64_t *)a, *y = (const int64_t *)b;
        int64_t *r = (int64_t *)d;
        for (int64_t i = 0; i < n; i++) {
            dv[i] = av[i] & bv[i] & (y[i] != 0);
            if (y[i] == 0) r[i] = 0;
            else if (code->op == OP_IFLOORDIV) r[i] = floor_quotient(x[i], y[i]);
            else if (code->op == OP_IMOD) r[i] = floor_rest(x[i], y[i]);
            else r[i] = y[i] == -1 ? (int64_t)(0 - (uint64_t)x[i]) : x[i] / y[i];
        }
        break;
    }
    case OP_IPOW: EACH1(int64_t, int64_t, power(x[i], code->imm)); break;
    case OP_INEG: EACH1(int64_t, int64_t, (int64_t)(0 - (uint64_t)x[i])); break;
    case OP_IABS: EACH1(int64_t, int64_t, x[i] < 0 ? (int64_t)(0 - (uint64_t)x[i]) : x[i]); break;
    case OP_ISIGN: EACH1(int64_t, int64_t, (x[i] > 0) - (x[i] < 0)); break;
    case OP_IWRAP: EACH1(int64_t, int64_t, wrap(x[i], code->imm)); break;
    case OP_IFITS:
    case OP_IMUST: { /* what does not fit the width is null, or declines */
        const int64_t *x = (const int64_t *)a;
        int64_t *r = (int64_t *)d;
        for (int64_t i = 0; i < n; i++) {
            int fits = wrap(x[i], code->imm) == x[i];
            if (!fits && av[i] && code->op == OP_IMUST) return DECLINED;
            r[i] = fits ? x[i] : 0;
            dv[i] = av[i] & (unsigned char)fits;
        }
        break;
    }
    case OP_ITOFLOAT: EACH1(double, int64_t, (double)x[i]); break;
    case OP_ITOSINGLE: EACH1(double, int64_t, (double)(float)x[i]); break;
    case OP_ITRUTH: EACH1(int64_t, int64_t, x[i] != 0); break;
    case OP_ITOTEXT: {
        const int64_t *x = (const int64_t *)a;
        Text *r = (Text *)d;
        for (int64_t i = 0; i < n; i++) {
            char *text = reserve(scratch, 24);
            if (!text) return NO_MEMORY;
            r[i] = (Text){text, snprintf(text, 24, "%lld", (long long)x[i])};
        }
        memcpy(dv, av, (size_t)n);
        break;
    }
    case OP_IEQ: EACH2(int64_t, int64_t, x[i] == y[i]); break;
    case OP_ILT: EACH2(int64_t, int64_t, x[i] < y[i]); break;
    case OP_ILE: EACH2(int64_t, int64_t, x[i] <= y[i]); break;
    case OP_IMIN: CHOOSE2(int64_t, x[i] < y[i]); break;
    case OP_IMAX: CHOOSE2(int64_t, x[i] > y[i]); break;
    case OP_ILEAST: EACH2(int64_t, int64_t, x[i] < y[i] ? y[i] : x[i]); break;
    case OP_IMOST: EACH2(int64_t, int64_t, x[i] > y[i] ? y[i] : x[i]); break;
    case OP_IIN: EACH1(int64_t, int64_t, in_wholes(table, x[i])); break;
    case OP_AND:
    case OP_OR: { /* Kleene: what the other side settles is not null */
        const int64_t *x = (const int64_t *)a, *y = (const int64_t *)b;
        int64_t *r = (int64_t *)d, settles = code->op == OP_OR;
        for (int64_t i = 0; i < n; i++) {
            int64_t left = x[i] != 0, right = y[i] != 0;
            int settled = (av[i] && left == settles) || (bv[i] && right == settles);
            r[i] = settled ? settles : !settles;
            dv[i] = settled || (av[i] && bv[i]);
        }
        break;
    }
    case OP_XOR: EACH2(int64_t, int64_t, (x[i] != 0) ^ (y[i] != 0)); break;
    case OP_NOT: EACH1(int64_t, int64_t, x[i] == 0); break;
    case OP_ISNULL:
    case OP_NOTNULL:
        for (int64_t i = 0; i < n; i++) ((int64_t *)d)[i] = av[i] == (code->op == OP_NOTNULL);
        memset(dv, 1, (size_t)n);
        break;
    case OP_FIF: IF3(double); break;
    case OP_IIF: IF3(int64_t); break;
    case OP_SIF: IF3(Text); break;
    case OP_FFILL: CHOOSE2(double, 1); break;
    case OP_IFILL: CHOOSE2(int64_t, 1); break;
    case OP_SFILL: CHOOSE2(Text, 1); break;
    case OP_SEQ: EACH2(int64_t, Text, equal(x[i], y[i])); break;
    case OP_SLT: EACH2(int64_t, Text, order(x[i], y[i]) < 0); break;
    case OP_SLE: EACH2(int64_t, Text, order(x[i], y[i]) <= 0); break;
    case OP_SIN: EACH1(int64_t, Text, in_texts(table, x[i])); break;
    case OP_SCHARS: EACH1(int64_t, Text, characters(x[i])); break;
    case OP_SBYTES: EACH1(int64_t, Text, x[i].size); break;
    case OP_SLOWER:
    case OP_SUPPER: {
        const Text *x = (const Text *)a;
        Text *r = (Text *)d;
        unsigned char first = code->op == OP_SLOWER ? 'A' : 'a';
        for (int64_t i = 0; i < n; i++) {
            char *text = reserve(scratch, (size_t)x[i].size + 1);
            if (!text) return NO_MEMORY;
            r[i] = (Text){text, av[i] ? x[i].size : 0};
            for (int64_t at = 0; at < r[i].size; at++) {
                unsigned char letter = (unsigned char)x[i].at[at];
                if (letter >= 0x80) return DECLINED;
                text[at] = (char)(letter >= first && letter < first + 26 ? letter ^ 0x20 : letter);
            }
        }
        memcpy(dv, av, (size_t)n);
        break;
    }
    case OP_SSTARTS: EACH2(int64_t, Text, x[i].size >= y[i].size && equal((Text){x[i].at, y[i].size}, y[i])); break;
    case OP_SENDS:
        EACH2(int64_t, Text,
              x[i].size >= y[i].size && equal((Text){x[i].at + (x[i].size - y[i].size), y[i].size}, y[i]));
        break;
    case OP_SCONTAINS: EACH2(int64_t, Text, contains(x[i], y[i])); break;
    case OP_SJOIN: {
        const Text *x = (const Text *)a, *y = (const Text *)b;
        Text *r = (Text *)d;
        for (int64_t i = 0; i < n; i++) {
            dv[i] = av[i] & bv[i];
            int64_t left = dv[i] ? x[i].size : 0, right = dv[i] ? y[i].size : 0;
            char *text = reserve(scratch, (size_t)(left + right) + 1);
            if (!text) return NO_MEMORY;
            if (left) memcpy(text, x[i].at, (size_t)left);
            if (right) memcpy(text + left, y[i].at, (size_t)right);
            r[i] = (Text){text, left + right};
        }
        break;
    }
    case OP_LOCAL: {
        const int64_t *x = (const int64_t *)a;
        for (int64_t i = 0; i < n; i++) {
            int sane = x[i] >= FIRST && x[i] <= LAST;
            if (!sane && av[i]) return DECLINED;
            ((int64_t *)d)[i] = sane ? x[i] + offset_at(table, x[i]) : 0;
        }
        memcpy(dv, av, (size_t)n);
        break;
    }
    case OP_LOCALBY: {
        const int64_t *x = (const int64_t *)a;
        const Text *names = (const Text *)b;
        for (int64_t i = 0; i < n; i++) {
            ((int64_t *)d)[i] = 0;
            dv[i] = 0;
            if (!av[i] || !bv[i]) continue;
            if (x[i] < FIRST || x[i] > LAST) return DECLINED;
            int16_t place = *zone_slot(program, names[i]);
            if (!place) {
                scratch->zone = names[i];
                return NO_ZONE;
            }
            const Zone *zone = &program->zones[place - 1];
            if (!zone->known) continue;
            ((int64_t *)d)[i] = x[i] + offset_at(&zone->table, x[i]);
            dv[i] = 1;
        }
        break;
    }
    case OP_FROMDAYS: {
        const int64_t *x = (const int64_t *)a;
        for (int64_t i = 0; i < n; i++) {
            int sane = x[i] >= FIRST / DAY_US && x[i] <= LAST / DAY_US;
            if (!sane && av[i]) return DECLINED;
            ((int64_t *)d)[i] = sane ? x[i] * DAY_US : 0;
        }
        memcpy(dv, av, (size_t)n);
        break;
    }
    case OP_TODAYS:
    case OP_HOUR:
    case OP_MINUTE:
    case OP_SECOND:
    case OP_MICROSECOND:
    case OP_WEEKDAY:
    case OP_DAY:
    case OP_MONTH:
    case OP_YEAR:
    case OP_ORDINAL:
    case OP_WEEK:
    case OP_ISOYEAR:
    case OP_QUARTER:
    case OP_LEAP: {
        const int64_t *x = (const int64_t *)a;
        for (int64_t i = 0; i < n; i++) {
            int sane = x[i] >= FIRST - 2 * DAY_US && x[i] <= LAST + 2 * DAY_US; /* local times reach further */
            if (!sane && av[i]) return DECLINED;
            int64_t time = sane ? x[i] : 0;
            ((int64_t *)d)[i] = code->op == OP_TODAYS ? floor_quotient(time, DAY_US) : calendar((Op)code->op, time);
        }
        memcpy(dv, av, (size_t)n);
        break;
    }
    case OP_SBUCKET: EACH1(int64_t, Text, (int64_t)(xxh64(x[i].at, x[i].size) % (uint64_t)code->imm)); break;
    case OP_IBUCKET: EACH1(int64_t, int64_t, bucket_of_whole(x[i], code->imm)); break;
    case OP_COUNT: break;
    }
    return DONE;
}

static Status run(const Program *program, char *cells, int64_t n, Scratch *scratch) {
    int32_t target = program->inputs + program->constants;
    for (int32_t i = 0; i < program->codes; i++) {
        Status status = step(program, &program->code[i], target + i, cells, n, scratch);
        if (status != DONE) return status;
    }
    return DONE;
}

#endif
