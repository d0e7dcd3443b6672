/*
 * parsers.c: a target for libFuzzer: whatever reads text that others wrote.
 *
 * The first byte of an input picks the parser, the rest is the text. Built by
 * test/fuzz/run with AddressSanitizer. What is checked besides: a template that
 * is accepted can be expanded, what a link points to lies within its header,
 * base64 that is read is the same when it is written and read again.
 */
#include "postgres.h"

#include "json.h"
#include "limit.h"
#include "link.h"
#include "mac.h"
#include "network.h"
#include "retry.h"
#include "rule.h"
#include "sign.h"
#include "template.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#define NOW (INT64CONST(834840000) * USECS_PER_SEC)

/* A string for names that begin with a letter up to "m", else nothing. */
static JsonbValue *
look_up(const char *name, void *arg)
{
	static JsonbValue value = {.type = jbvString};

	if (name[0] > 'm')
		return NULL;
	value.val.string.val = "a b/\xc3\xa4%";
	value.val.string.len = 8;
	return &value;
}

static void
fuzz_template(const char *text)
{
	char	   *missing;
	const char *rest = text;

	if (accord_template_check(text) != NULL)
		return;
	while (accord_template_next_variable(&rest) != NULL)
		;
	(void) accord_template_expand(text, false, look_up, NULL, &missing);
	(void) accord_template_expand(text, true, look_up, NULL, &missing);
}

static void
fuzz_hint(const char *text)
{
	static const char *const names[] = {
		"RateLimit", "RateLimit-Limit", "RateLimit-Remaining",
		"RateLimit-Reset", "X-RateLimit-Reset", "X-Rate-Limit-Remaining"
	};

	for (int i = 0; i < lengthof(names); i++)
	{
		AccordHint	hint = {-1, -1};

		accord_limit_hint(names[i], strlen(names[i]), text, NOW, &hint);
	}
}

static void
fuzz_link(const char *text)
{
	const char *target;
	size_t		len;

	if (accord_link_find(text, "next", &target, &len) &&
		(target < text || target + len > text + strlen(text)))
		abort();
}

/* What a request is signed by, and a URL that somebody gave. */
static void
fuzz_sign(const char *text)
{
	AccordSignRule rule = {
		.sign = text,.n_lines = 1,.names = {"S"},.values = {text}
	};
	AccordSignAws aws = {"A", "S", NULL, "r", "s3"};
	AccordSignRequest request = {
		.method = "GET",.url = text,.headers = &text,.n_headers = 1,.id = "i",
		.nonce = "n",.now = NOW
	};
	AccordSignature signature;
	size_t		len;
	uint8	   *bytes = accord_mac_from_base64(text, &len);

	(void) accord_mac_from_hex(text, &len);
	if (accord_sign_check(text, true) == NULL)
		accord_sign_rule(&rule, "secret", &request, &signature);
	accord_sign_aws(&aws, &request, &signature);
	aws.service = "iam";
	accord_sign_aws(&aws, &request, &signature);
	if (bytes != NULL)
	{
		size_t		again;
		uint8	   *same;

		(void) accord_mac_from_base64(text, &len);
		same = accord_mac_from_base64(accord_mac_base64(bytes, len), &again);
		if (same == NULL || again != len || memcmp(same, bytes, len) != 0)
			abort();
	}
}

static void
fuzz_network(const char *text)
{
	AccordNetwork *networks;
	AccordAddress address;

	if (accord_network_parse(text, &networks) > 0)
		free(networks);
	if (accord_network_address_text(text, &address))
		(void) accord_network_refused(&address, NULL, 0);
}

/* A status list; a pattern, and after a newline what may meet it. */
static void
fuzz_rule(char *text)
{
	AccordStatusRange ranges[ACCORD_RULE_RANGES];
	int			n = accord_rule_status(text, ranges);
	char	   *line = strchr(text, '\n');

	for (int i = 0; i < n; i++)
		if (ranges[i].low > ranges[i].high)
			abort();
	if (line == NULL)
		return;
	*line = '\0';
	(void) accord_rule_glob(text, line + 1);
	if (!accord_rule_glob("*", line + 1))
		abort();
}

int			LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char	   *text;

	if (size == 0)
		return 0;
	text = malloc(size);
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	switch (data[0] % 8)
	{
		case 0:
			fuzz_template(text);
			break;
		case 1:
			(void) accord_retry_after_parse(text, NOW);
			break;
		case 2:
			fuzz_hint(text);
			break;
		case 3:
			fuzz_link(text);
			break;
		case 4:
			fuzz_sign(text);
			break;
		case 5:
			fuzz_network(text);
			break;
		case 6:
			(void) accord_json_clean(text, size - 1, 16);
			break;
		case 7:
			fuzz_rule(text);
			break;
	}
	free(text);
	return 0;
}

#include "server.h"
