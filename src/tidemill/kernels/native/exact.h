/* Sums without rounding: what exact.py computes with Python integers, in fixed arrays and without allocation.
 *
 * A double is an integer of 53 bits times a power of two. An accumulator is a number on a fixed grid of digits of 32
 * bits, each held in an int64, so that adding or taking away a number touches three digits (its square: five) and
 * never carries; carries are worked out when a result is read. (The small superaccumulator of R. M. Neal, "Fast exact
 * summation using small and large superaccumulators", 2015, with digits narrow enough for 2^31 numbers.) So the order
 * of additions does not matter, and what has been taken away leaves no trace.
 *
 *     exact_sum sum; exact_squares squares;
 *     exact_sum_init(&sum); exact_squares_init(&squares);           once
 *     exact_sum_add(&sum, x); exact_squares_add(&squares, x);       x finite; exact_sum_add_int for int64
 *     exact_sum_remove(&sum, x); ...                                what was added before, in any order
 *     exact_sum_value(&sum); exact_mean(&sum, n); exact_deviation(&sum, &squares, n);
 *     exact_sum_clear(&sum); exact_squares_clear(&squares);         back to nothing; cheap
 *
 * Results are correctly rounded (to nearest, ties to even; subnormals too; beyond the largest, infinite); a zero sum
 * is +0.0, a negative one that rounds to zero -0.0, as Python divides integers. At most 2^31 - 1 numbers may be in an
 * accumulator at a time. Every function is static: include it where it is needed.
 */
#ifndef TIDEMILL_EXACT_H
#define TIDEMILL_EXACT_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Digit i stands for multiples of 2^(32 i - 1074) in a sum, of 2^(32 i - 2148) in a sum of squares. */
#define EXACT_SUM_DIGITS 68      /* (2045 + 64) / 32 + 2, even */
#define EXACT_SQUARE_DIGITS 134  /* (4090 + 128) / 32 + 2, even */
#define EXACT_SUM_UNIT (-1074)
#define EXACT_SQUARE_UNIT (-2148)
#define EXACT_WORDS 72           /* words of 64 bits, enough for a product of two sums */

typedef unsigned __int128 exact_u128;

/* low, high: the digits that have been touched; low >= high when none has. */
typedef struct {
    int32_t low, high;
    int64_t digit[EXACT_SUM_DIGITS];
} exact_sum;

typedef struct {
    int32_t low, high;
    int64_t digit[EXACT_SQUARE_DIGITS];
} exact_squares;

/* A magnitude: the sum of word[i] * 2^(64 i + exponent); the top word is not zero; words is 0 for zero. */
typedef struct {
    int words, negative;
    int64_t exponent;
    uint64_t word[EXACT_WORDS];
} exact_number;

static inline void exact_sum_init(exact_sum *sum) {
    memset(sum, 0, sizeof *sum);
    sum->low = EXACT_SUM_DIGITS;
}

static inline void exact_squares_init(exact_squares *squares) {
    memset(squares, 0, sizeof *squares);
    squares->low = EXACT_SQUARE_DIGITS;
}

static inline void exact_sum_clear(exact_sum *sum) {
    if (sum->low < sum->high)
        memset(sum->digit + sum->low, 0, (size_t)(sum->high - sum->low) * sizeof(int64_t));
    sum->low = EXACT_SUM_DIGITS;
    sum->high = 0;
}

static inline void exact_squares_clear(exact_squares *squares) {
    if (squares->low < squares->high)
        memset(squares->digit + squares->low, 0, (size_t)(squares->high - squares->low) * sizeof(int64_t));
    squares->low = EXACT_SQUARE_DIGITS;
    squares->high = 0;
}

/* Split a finite double: returns its integer (magnitude), of which bit 0 stands for 2^(*place - 1074). */
static inline uint64_t exact_split(double value, int *place, int64_t *sign) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    int power = (int)(bits >> 52) & 0x7ff;
    uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
    *sign = -(int64_t)(bits >> 63); /* 0 or -1 */
    *place = power ? power - 1 : 0;
    return power ? fraction | UINT64_C(1) << 52 : fraction;
}

/* Add the integer, times -1 where sign is -1 and not 0. */
static inline void exact_sum_put(exact_sum *sum, uint64_t integer, int place, int64_t sign) {
    int first = place >> 5, shift = place & 31;
    uint64_t upper = integer >> 1 >> (31 - shift);
    int64_t d0 = (int64_t)((integer << shift) & 0xffffffff), d1 = (int64_t)(upper & 0xffffffff);
    int64_t d2 = (int64_t)(upper >> 32), *digit = sum->digit + first;
    digit[0] += (d0 ^ sign) - sign;
    digit[1] += (d1 ^ sign) - sign;
    digit[2] += (d2 ^ sign) - sign;
    if (first < sum->low) sum->low = first;
    if (first + 3 > sum->high) sum->high = first + 3;
}

static inline void exact_squares_put(exact_squares *squares, uint64_t integer, int place, int64_t sign) {
    exact_u128 square = (exact_u128)integer * integer;
    int first = (2 * place) >> 5, shift = (2 * place) & 31;
    exact_u128 upper = square >> 1 >> (31 - shift);
    int64_t d[5], *digit = squares->digit + first;
    d[0] = (int64_t)(((uint64_t)square << shift) & 0xffffffff);
    d[1] = (int64_t)((uint64_t)upper & 0xffffffff);
    d[2] = (int64_t)((uint64_t)upper >> 32);
    d[3] = (int64_t)((uint64_t)(upper >> 64) & 0xffffffff);
    d[4] = (int64_t)((uint64_t)(upper >> 64) >> 32);
    for (int i = 0; i < 5; i++) digit[i] += (d[i] ^ sign) - sign;
    if (first < squares->low) squares->low = first;
    if (first + 5 > squares->high) squares->high = first + 5;
}

static inline void exact_sum_add(exact_sum *sum, double value) {
    int place;
    int64_t sign;
    uint64_t integer = exact_split(value, &place, &sign);
    exact_sum_put(sum, integer, place, sign);
}

static inline void exact_sum_remove(exact_sum *sum, double value) {
    int place;
    int64_t sign;
    uint64_t integer = exact_split(value, &place, &sign);
    exact_sum_put(sum, integer, place, ~sign);
}

static inline uint64_t exact_magnitude(int64_t value) {
    return value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
}

static inline void exact_sum_add_int(exact_sum *sum, int64_t value) {
    exact_sum_put(sum, exact_magnitude(value), -EXACT_SUM_UNIT, -(int64_t)(value < 0));
}

static inline void exact_sum_remove_int(exact_sum *sum, int64_t value) {
    exact_sum_put(sum, exact_magnitude(value), -EXACT_SUM_UNIT, -(int64_t)(value >= 0));
}

static inline void exact_squares_add(exact_squares *squares, double value) {
    int place;
    int64_t sign;
    uint64_t integer = exact_split(value, &place, &sign);
    exact_squares_put(squares, integer, place, 0);
}

static inline void exact_squares_remove(exact_squares *squares, double value) {
    int place;
    int64_t sign;
    uint64_t integer = exact_split(value, &place, &sign);
    exact_squares_put(squares, integer, place, -1);
}

static inline void exact_squares_add_int(exact_squares *squares, int64_t value) {
    exact_squares_put(squares, exact_magnitude(value), -EXACT_SUM_UNIT, 0);
}

static inline void exact_squares_remove_int(exact_squares *squares, int64_t value) {
    exact_squares_put(squares, exact_magnitude(value), -EXACT_SUM_UNIT, -1);
}

/* Drop zero words at the top. */
static inline void exact_trim(exact_number *number) {
    while (number->words && !number->word[number->words - 1]) number->words--;
}

/* Work out the carries of the digits from low to high (exclusive). The exponent is unit plus a multiple of 64. */
static inline void exact_read(const int64_t *digit, int low, int high, int unit, exact_number *number) {
    number->words = number->negative = 0;
    number->exponent = unit;
    if (low >= high) return;
    low &= ~1;
    high = (high + 1) & ~1; /* digit arrays have an even length */
    number->exponent = unit + 32 * (int64_t)low;
    __int128 carry = 0;
    int words = 0;
    for (int i = low; i < high; i += 2) {
        carry += (__int128)digit[i] + (__int128)digit[i + 1] * ((int64_t)1 << 32);
        number->word[words++] = (uint64_t)carry;
        carry >>= 64;
    }
    number->word[words++] = (uint64_t)carry;
    if (carry < 0) {
        number->negative = 1;
        uint64_t more = 1;
        for (int i = 0; i < words; i++) {
            number->word[i] = ~number->word[i] + more;
            more = more && !number->word[i];
        }
    }
    number->words = words;
    exact_trim(number);
}

/* The double nearest to (top + a fraction below 1 that is not zero when sticky) * 2^exponent; top has bit 63 set. */
static inline double exact_round(uint64_t top, int sticky, int64_t exponent, int negative) {
    int64_t power = exponent + 63; /* the value lies in [2^power, 2^(power + 1)) */
    uint64_t bits;
    if (power > 1023) {
        bits = UINT64_C(0x7ff) << 52;
    } else {
        int64_t drop = power >= -1022 ? 11 : 11 + (-1022 - power); /* bits below the last one that is kept */
        if (drop > 64) {
            bits = 0; /* below half of the smallest */
        } else {
            uint64_t kept = drop == 64 ? 0 : top >> drop;
            uint64_t rest = drop == 64 ? top : top << (64 - drop);
            uint64_t half = UINT64_C(1) << 63;
            kept += rest > half || (rest == half && (sticky || (kept & 1)));
            /* A carry runs from the fraction into the exponent, and from the subnormals into the normals. */
            bits = power >= -1022 ? ((uint64_t)(power + 1022) << 52) + kept : kept;
        }
    }
    bits |= (uint64_t)(negative != 0) << 63;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The top 64 bits of a number that is not zero, bit 63 set; *exponent is theirs, *sticky whether anything is below. */
static inline uint64_t exact_top(const exact_number *number, int64_t *exponent, int *sticky) {
    int last = number->words - 1, lead = __builtin_clzll(number->word[last]);
    uint64_t top = number->word[last] << lead, below = 0;
    if (lead && last) {
        top |= number->word[last - 1] >> (64 - lead);
        below = number->word[last - 1] << lead;
    } else if (last) {
        below = number->word[last - 1];
    }
    for (int i = last - 2; !below && i >= 0; i--) below = number->word[i];
    *exponent = number->exponent + 64 * (int64_t)last - lead;
    *sticky = below != 0;
    return top;
}

/* Divide a number that is not zero: the floor of number * 2^*shift / divisor, which gets `bits` or bits + 1 bits,
 * or one more to make (exponent - *shift) even where that is asked for. bits <= 124; divisor < 2^63. */
static inline exact_u128 exact_divide(
    const exact_number *number, uint64_t divisor, int bits, int even, int64_t *shift, int *sticky
) {
    int last = number->words - 1;
    int64_t length = 64 * (int64_t)last + 64 - __builtin_clzll(number->word[last]);
    int64_t by = bits + (64 - __builtin_clzll(divisor)) - length;
    if (even && ((number->exponent - by) & 1)) by++;
    uint64_t scaled[3] = {0, 0, 0}, lost = 0; /* number * 2^by, below 2^(bits + 1 + 63) */
    for (int i = 0; i <= last; i++) {
        int64_t at = 64 * (int64_t)i + by; /* where bit 0 of the word goes */
        uint64_t word = number->word[i];
        if (at <= -64) {
            lost |= word;
        } else if (at < 0) {
            scaled[0] |= word >> -at;
            lost |= word << (64 + at);
        } else {
            int64_t place = at >> 6;
            int left = (int)(at & 63);
            if (place < 3) scaled[place] |= word << left;
            if (left && place + 1 < 3) scaled[place + 1] |= word >> (64 - left);
        }
    }
    uint64_t remainder = 0, quotient[3];
    for (int i = 2; i >= 0; i--) {
        exact_u128 part = (exact_u128)remainder << 64 | scaled[i];
        quotient[i] = (uint64_t)(part / divisor);
        remainder = (uint64_t)(part % divisor);
    }
    *shift = by;
    *sticky = lost != 0 || remainder != 0;
    return (exact_u128)quotient[1] << 64 | quotient[0];
}

#if LDBL_MANT_DIG == 64
/* Round a positive long double that is within 4 units of its last place of the truth, times 2^exponent. Returns 0
 * where that does not settle it: near the middle between two doubles, or outside the normal ones. */
static inline int exact_settle(long double value, int64_t exponent, int negative, double *result) {
    uint64_t top;
    uint16_t power;
    memcpy(&top, &value, sizeof top);
    memcpy(&power, (const char *)&value + sizeof top, sizeof power);
    int low = (int)(top & 0x7ff);
    int64_t unit = (int64_t)power - 16383 - 63 + exponent;
    if ((low >= 0x3fb && low <= 0x405) || unit + 63 < -1021 || unit + 63 > 1022) return 0;
    *result = exact_round(top, 0, unit, negative);
    return 1;
}
#endif

/* number / divisor; 1 <= divisor < 2^63. */
static inline double exact_quotient(const exact_number *number, uint64_t divisor) {
    if (!number->words) return 0.0;
    int64_t exponent;
    int sticky;
    uint64_t top = exact_top(number, &exponent, &sticky);
    if (divisor == 1) return exact_round(top, sticky, exponent, number->negative);
#if LDBL_MANT_DIG == 64
    double settled; /* off by less than 1 unit for the bits below top, and half of one for the division, doubled */
    if (exact_settle((long double)top / (long double)divisor, exponent, number->negative, &settled)) return settled;
#endif
    int64_t shift;
    exact_u128 quotient = exact_divide(number, divisor, 100, 0, &shift, &sticky);
    int lead = __builtin_clzll((uint64_t)(quotient >> 64)); /* of 100 bits, 36 are in the upper word */
    top = (uint64_t)(quotient << lead >> 64);
    sticky |= (uint64_t)(quotient << lead) != 0;
    return exact_round(top, sticky, number->exponent - shift + 64 - lead, number->negative);
}

/* The integer square root of a number of 2 to 126 bits. */
static inline uint64_t exact_isqrt(exact_u128 number) {
    uint64_t root = (uint64_t)sqrt((double)number) + 1;
    root = (uint64_t)((root + number / root) >> 1); /* one step of Newton's: not below the root, and close to it */
    while ((exact_u128)root * root > number) root--;
    while ((exact_u128)(root + 1) * (root + 1) <= number) root++;
    return root;
}

/* The square root of number / divisor, the number being even in its exponent; 1 <= divisor < 2^63. */
static inline double exact_root(const exact_number *number, uint64_t divisor) {
    if (!number->words) return 0.0;
    int64_t shift;
    int sticky;
#if LDBL_MANT_DIG == 64
    int64_t exponent;
    uint64_t top = exact_top(number, &exponent, &sticky);
    long double ratio = (long double)top / (long double)divisor;
    double settled; /* the root halves what the ratio is off by */
    if (exponent & 1) {
        ratio += ratio;
        exponent--;
    }
    if (exact_settle(sqrtl(ratio), exponent / 2, 0, &settled)) return settled;
#endif
    exact_u128 quotient = exact_divide(number, divisor, 112, 1, &shift, &sticky);
    uint64_t root = exact_isqrt(quotient); /* of 56 bits or more: rounded to odd, it can be rounded once more */
    root |= sticky || (exact_u128)root * root != quotient;
    int lead = __builtin_clzll(root);
    return exact_round(root << lead, 0, (number->exponent - shift) / 2 - lead, 0);
}

static inline double exact_sum_value(const exact_sum *sum) {
    exact_number number;
    exact_read(sum->digit, sum->low, sum->high, EXACT_SUM_UNIT, &number);
    return exact_quotient(&number, 1);
}

/* count >= 1 */
static inline double exact_mean(const exact_sum *sum, int64_t count) {
    exact_number number;
    exact_read(sum->digit, sum->low, sum->high, EXACT_SUM_UNIT, &number);
    return exact_quotient(&number, (uint64_t)count);
}

/* The deviation of a sample (n - 1); NaN where count is below 2. */
static inline double exact_deviation(const exact_sum *sum, const exact_squares *squares, int64_t count) {
    if (count < 2) return NAN;
    exact_number total, squared, spread; /* spread = count * squared - total * total, in units of its exponent */
    exact_read(sum->digit, sum->low, sum->high, EXACT_SUM_UNIT, &total);
    exact_read(squares->digit, squares->low, squares->high, EXACT_SQUARE_UNIT, &squared);
    if (!squared.words) return 0.0;
    int64_t low = total.words && 2 * total.exponent < squared.exponent ? 2 * total.exponent : squared.exponent;
    int base = (int)((squared.exponent - low) / 64), size = base + squared.words + 2;
    spread.exponent = low;
    spread.negative = 0;
    memset(spread.word, 0, (size_t)size * sizeof(uint64_t));
    uint64_t carry = 0;
    for (int i = 0; i < squared.words; i++) {
        exact_u128 part = (exact_u128)squared.word[i] * (uint64_t)count + carry;
        spread.word[base + i] = (uint64_t)part;
        carry = (uint64_t)(part >> 64);
    }
    spread.word[base + squared.words] = carry;
    base = (int)((2 * total.exponent - low) / 64);
    for (int i = 0; i < total.words; i++) {
        /* Take total * word[i] away. The square of the sum is no larger than count * squares: no borrow is left. */
        uint64_t borrow = 0;
        int at = base + i;
        for (int j = 0; j < total.words && at < size; j++, at++) {
            exact_u128 part = (exact_u128)total.word[i] * total.word[j] + borrow;
            uint64_t before = spread.word[at];
            spread.word[at] = before - (uint64_t)part;
            borrow = (uint64_t)(part >> 64) + (before < (uint64_t)part);
        }
        for (; borrow && at < size; at++) {
            uint64_t before = spread.word[at];
            spread.word[at] = before - borrow;
            borrow = before < borrow;
        }
    }
    spread.words = size;
    exact_trim(&spread);
    return exact_root(&spread, (uint64_t)count * (uint64_t)(count - 1));
}

#endif
