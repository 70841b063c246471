/* The check digit of card and IMEI numbers: ISO/IEC 7812-1, annex B. */

#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(luhn_valid);

/* Whether a text is two or more digits, and the last one is the check digit of the others. */
Datum
luhn_valid(PG_FUNCTION_ARGS)
{
	text	   *number = PG_GETARG_TEXT_PP(0);
	const char *digits = VARDATA_ANY(number);
	size_t		length = VARSIZE_ANY_EXHDR(number);
	unsigned	sum = 0;

	for (size_t place = 0; place < length; place++)
	{
		char		digit = digits[length - 1 - place];

		if (digit < '0' || digit > '9')
			PG_RETURN_BOOL(false);
		/* modulo 9, where a doubled 9 counts as 9 and not as 0 */
		sum += place % 2 == 0 || digit == '9' ? digit - '0' : (digit - '0') * 2 % 9;
		sum %= 10;
	}
	PG_RETURN_BOOL(length >= 2 && sum == 0);
}
