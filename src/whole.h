/*
 * whole.h: whole numbers in the form in which numeric is stored
 *
 * Layer 0. numeric.c has no interface to what is read and written here, and
 * its functions cost more than all else that is done with a row's integers.
 * The form is that of data files, which pg_upgrade keeps: 16 bits of sign,
 * scale and weight, then digits of base 10,000, of which zeros at the end are
 * left out.
 */
#ifndef ACCORD_WHOLE_H
#define ACCORD_WHOLE_H

#include "utils/numeric.h"

/* The first 16 bits; in the short form: */
#define ACCORD_NUMERIC_FORM 0xC000
#define ACCORD_NUMERIC_FORM_SHORT 0x8000
#define ACCORD_NUMERIC_NEGATIVE 0x2000
#define ACCORD_NUMERIC_SCALE 0x1F80 /* decimal digits after the point */
#define ACCORD_NUMERIC_WEIGHT 0x007F	/* of the first digit, and its sign */
#define ACCORD_NUMERIC_BASE 10000

#define ACCORD_WHOLE_READ 4		/* digits that are read: below 10^16 */
#define ACCORD_WHOLE_WRITTEN 5	/* digits that an int64 may have */

/* The most bytes that accord_whole_write() writes. */
#define ACCORD_WHOLE_BYTES \
	(VARHDRSZ + (1 + ACCORD_WHOLE_WRITTEN) * (int) sizeof(uint16))

/*
 * The value of a number that is whole, not negative and not too large, as most
 * are. False: it is something else.
 */
static inline bool
accord_whole_read(Numeric number, uint64 *whole)
{
	const uint16 *words = (const uint16 *) VARDATA(number);
	int			n;
	int			weight;

	*whole = 0;
	if (!VARATT_IS_4B_U(number))
		return false;
	n = (int) (VARSIZE(number) - VARHDRSZ) / (int) sizeof(uint16) - 1;
	weight = words[0] & ACCORD_NUMERIC_WEIGHT;
	if ((words[0] & (ACCORD_NUMERIC_FORM | ACCORD_NUMERIC_NEGATIVE |
					 ACCORD_NUMERIC_SCALE)) != ACCORD_NUMERIC_FORM_SHORT ||
		weight >= ACCORD_WHOLE_READ || n > weight + 1)
		return false;
	/* zeros at the end are not stored, nor is zero */
	for (int i = 0; n > 0 && i <= weight; i++)
		*whole = *whole * ACCORD_NUMERIC_BASE + (i < n ? words[1 + i] : 0);
	return true;
}

/*
 * Writes a number to aligned memory of ACCORD_WHOLE_BYTES; returns its size.
 * The same bytes as of int64_to_numeric().
 */
static inline int
accord_whole_write(void *where, int64 value)
{
	uint16	   *words = (uint16 *) VARDATA(where);
	uint64		left = value < 0 ? -(uint64) value : (uint64) value;
	uint16		digits[ACCORD_WHOLE_WRITTEN];
	int			first = ACCORD_WHOLE_WRITTEN;
	int			last = ACCORD_WHOLE_WRITTEN;
	int			n = 0;

	for (; left > 0; left /= ACCORD_NUMERIC_BASE)
		digits[--first] = left % ACCORD_NUMERIC_BASE;
	words[0] = ACCORD_NUMERIC_FORM_SHORT |
		(value < 0 ? ACCORD_NUMERIC_NEGATIVE : 0) |
		(first < last ? last - first - 1 : 0);
	while (last > first && digits[last - 1] == 0)
		last--;
	while (first < last)
		words[++n] = digits[first++];
	SET_VARSIZE(where, VARHDRSZ + (1 + n) * sizeof(uint16));
	return VARSIZE(where);
}

#endif							/* ACCORD_WHOLE_H */
