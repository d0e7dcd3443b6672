/*
 * sign.c: tests of what requests are signed with, without a server: the
 * vectors that the specifications publish (AWS's test suite for Signature
 * Version 4 and the examples of its manuals, Standard Webhooks' own, RFC 4231
 * by way of a template), and how bytes are read and written.
 *
 * Runs by itself; test/unit/run links it with sign.c and mac.c.
 */
#include "postgres.h"

#include "sign.h"

#define EPOCH_US (INT64CONST(10957) * USECS_PER_DAY)	/* 1970 to 2000 */

static int	passed;
static int	failed;

static void
check_text(const char *got, const char *expected, const char *what)
{
	if (got != NULL && strcmp(got, expected) == 0)
	{
		passed++;
		return;
	}
	failed++;
	printf("FAILED  %s: got %s, expected %s\n", what, got ? got : "NULL",
		   expected);
}

static TimestampTz
at(int64 unix_seconds)
{
	return unix_seconds * USECS_PER_SEC - EPOCH_US;
}

/* ---- AWS ---- */

static const struct
{
	const char *what;
	const char *method;
	const char *url;
	const char *header;			/* NULL: none */
	const char *body;
	const char *signature;
}			suite[] = {
#define HOST "https://example.amazonaws.com"
	{"get-vanilla", "GET", HOST "/", NULL, NULL,
	"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"no path", "GET", HOST, NULL, NULL,
	"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"the scheme's port", "GET", HOST ":443/", NULL, NULL,
	"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"get-vanilla-query-order-key-case", "GET",
		HOST "/?Param2=value2&Param1=value1", NULL, NULL,
	"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
	{"get-vanilla-query-order-value", "GET",
		HOST "/?Param1=value2&Param1=value1", NULL, NULL,
	"5772eed61e12b33fae39ee5e7012498b51d56abc0abb7c60486157bd471c4694"},
	{"get-unreserved", "GET",
		HOST "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
		NULL, NULL,
	"07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
	{"get-utf8", "GET", HOST "/\xe1\x88\xb4", NULL, NULL,
	"8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
	{"get-vanilla-utf8-query", "GET", HOST "/?\xe1\x88\xb4=bar", NULL, NULL,
	"2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
	{"get-slashes", "GET", HOST "//example//", NULL, NULL,
	"9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"},
	{"get-space", "GET", HOST "/example space/", NULL, NULL,
	"652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"},
	{"post-vanilla", "POST", HOST "/", NULL, NULL,
	"5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	{"post-x-www-form-urlencoded", "POST", HOST "/",
		"Content-Type:application/x-www-form-urlencoded", "Param1=value1",
	"ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"}
};

/* The signature at the end of the last line. */
static const char *
aws_signature(const AccordSignature *signature)
{
	const char *line = signature->error == NULL && signature->n_lines > 0 ?
	signature->lines[signature->n_lines - 1] : "";
	const char *found = strstr(line, "Signature=");

	return found ? found + strlen("Signature=") : signature->error;
}

static void
test_suite(void)
{
	AccordSignAws aws = {
		"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", NULL,
		"us-east-1", "service"
	};

	for (int i = 0; i < lengthof(suite); i++)
	{
		AccordSignature signature;
		AccordSignRequest request = {
			.method = suite[i].method,.url = suite[i].url,
			.headers = (const char **) &suite[i].header,
			.n_headers = suite[i].header ? 1 : 0,
			.body = suite[i].body,
			.body_len = suite[i].body ? strlen(suite[i].body) : 0,
			.now = at(1440938160)
		};

		accord_sign_aws(&aws, &request, &signature);
		check_text(aws_signature(&signature), suite[i].signature,
				   suite[i].what);
	}
}

static void
test_manuals(void)
{
	AccordSignAws s3 = {
		"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
		NULL, "us-east-1", "s3"
	};
	AccordSignAws iam = {
		"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", NULL,
		"us-east-1", "iam"
	};
	const char *type =
		"Content-Type: application/x-www-form-urlencoded; charset=utf-8";
	AccordSignRequest request = {
		.method = "GET",.now = at(1369353600),
		.url = "https://examplebucket.s3.amazonaws.com/?lifecycle"
	};
	AccordSignature signature;

	accord_sign_aws(&s3, &request, &signature);
	check_text(aws_signature(&signature),
			   "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
			   "S3: get bucket lifecycle");
	request.url = "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J";
	accord_sign_aws(&s3, &request, &signature);
	check_text(aws_signature(&signature),
			   "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
			   "S3: list objects");
	request.url = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08";
	request.headers = &type;
	request.n_headers = 1;
	request.now = at(1440938160);
	accord_sign_aws(&iam, &request, &signature);
	check_text(aws_signature(&signature),
			   "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
			   "IAM: list users");
	request.url = "https://h/a%20b//c%2Fd?x=%7e&y=+";
	request.n_headers = 0;
	check_text(accord_sign_aws_canonical(&iam, &request),
			   "GET\n/a%2520b/c%252Fd\nx=~&y=%2B\nhost:h\n"
			   "x-amz-date:20150830T123600Z\n\nhost;x-amz-date\n"
			   "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			   "a path is encoded twice");
	check_text(accord_sign_aws_canonical(&s3, &request),
			   "GET\n/a%20b//c%2Fd\nx=~&y=%2B\nhost:h\n"
			   "x-amz-content-sha256:"
			   "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
			   "x-amz-date:20150830T123600Z\n\n"
			   "host;x-amz-content-sha256;x-amz-date\n"
			   "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			   "... but for S3");
}

/* ---- Standard Webhooks ---- */

static void
test_standard(void)
{
	const char *secrets[] = {
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	};
	const char *body = "{\"test\": 2432232314}";
	AccordSignRequest request = {
		.method = "POST",.url = "https://example.com/hook",.body = body,
		.body_len = strlen(body),.id = "msg_p5jXN8AQM9LWM0D4loKWxJek",
		.now = at(1614265330)
	};
	AccordSignature signature;

	accord_sign_standard(secrets, 1, &request, &signature);
	check_text(signature.lines[0], "webhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek",
			   "its id");
	check_text(signature.lines[1], "webhook-timestamp: 1614265330", "its time");
	check_text(signature.lines[2], "webhook-signature: "
			   "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
			   "Standard Webhooks' vector");
	accord_sign_standard(secrets, 2, &request, &signature);
	check_text(strstr(signature.lines[2], "J1OE= v1,") ? "two" : "one", "two",
			   "a signature for each secret");
	secrets[1] = "not base64!";
	accord_sign_standard(secrets, 2, &request, &signature);
	check_text(signature.error, "a secret is not base64 after \"whsec_\"",
			   "a secret that is none");
}

/* ---- templates ---- */

static char *
sign_line(AccordSignRule *rule, const char *secret)
{
	static const char *headers[] = {"Content-Type: text/plain ", "X-A: b"};
	AccordSignRequest request = {
		.method = "PUT",.url = "https://api.example.com:8443/v1/a?b=c&d=e",
		.headers = headers,.n_headers = 2,.body = "what do ya want for nothing?",
		.body_len = 28,.id = "the-id",.nonce = "n1",
		.now = at(1614265330) + 123456
	};
	AccordSignature signature;

	accord_sign_rule(rule, secret, &request, &signature);
	return signature.error ? (char *) signature.error : signature.lines[0];
}

static void
test_rule(void)
{
	AccordSignRule rule = {
		.hash = ACCORD_MAC_SHA256,.user = "k-1",.sign = "{body}",.n_lines = 1,
		.names = {"S"},.values = {"v1={signature}"}
	};

	check_text(sign_line(&rule, "Jefe"),
			   "S: v1=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
			   "RFC 4231, case 2");
	rule.hash = ACCORD_MAC_SHA512;
	rule.base64 = true;
	check_text(sign_line(&rule, "Jefe"), "S: v1="
			   "Fkt6e/z4GeLjlfvnO1bgo4e9ZCIugx/WECcM1+olBVSXWL91wFqZSm0DT2X48Ob9"
			   "yuqxo01Ka0tjbgcKOLznNw==", "... SHA-512, base64");
	rule.hash = ACCORD_MAC_SHA1;
	rule.base64 = false;
	rule.key = ACCORD_SIGN_KEY_HEX;
	check_text(sign_line(&rule, "4a656665"),
			   "S: v1=effcdf6ae5eb2fa2d27416d5f184df9c259a7c79", "... SHA-1");
	check_text(sign_line(&rule, "4a65666"),
			   "the secret is not written as \"key\" says", "half a byte");
	rule.key = ACCORD_SIGN_KEY_BASE64;
	check_text(sign_line(&rule, "SmVmZQ=="),
			   "S: v1=effcdf6ae5eb2fa2d27416d5f184df9c259a7c79",
			   "... its key in base64");
	rule.values[0] = "{method} {host} {path} {query} {target} {url} {id} {nonce} "
		"{user} {timestamp} {header.content-type}|{header.none}|{body_sha256}";
	check_text(sign_line(&rule, "SmVmZQ=="),
			   "S: PUT api.example.com:8443 /v1/a b=c&d=e /v1/a?b=c&d=e "
			   "https://api.example.com:8443/v1/a?b=c&d=e the-id n1 k-1 "
			   "1614265330 text/plain||"
			   "b381e7fec653fc3ab9b178272366b8ac87fed8d31cb25ed1d0e1f3318644c89c",
			   "every variable");
	rule.time = ACCORD_SIGN_TIME_MS;
	rule.values[0] = "{timestamp}";
	check_text(sign_line(&rule, "SmVmZQ=="), "S: 1614265330123", "milliseconds");
	rule.time = ACCORD_SIGN_TIME_ISO;
	check_text(sign_line(&rule, "SmVmZQ=="), "S: 2021-02-25T15:02:10Z",
			   "ISO 8601");
	check_text(accord_sign_check("{body}{what}", true), "what",
			   "an unknown variable");
	check_text(accord_sign_check("{signature}", false), "signature",
			   "a signature of itself");
	check_text(accord_sign_check("{body", true), "body", "no closing brace");
	check_text(accord_sign_check("{header.X}.{signature}", true) ? "wrong" : "fine",
			   "fine", "what is known");
}

/* ---- bytes as text ---- */

static void
test_text(void)
{
	size_t		len;
	uint8	   *bytes = accord_mac_from_base64("-_-_", &len);

	check_text(bytes && len == 3 ? accord_mac_hex(bytes, len) : NULL, "fbffbf",
			   "base64 of URLs");
	bytes = accord_mac_from_base64("+/+", &len);
	check_text(bytes && len == 2 ? accord_mac_base64(bytes, len) : NULL, "+/8=",
			   "... without padding");
	check_text(accord_mac_from_base64("A", &len) ? "read" : "refused", "refused",
			   "... a quarter of it");
	check_text(accord_mac_from_base64("AA AA", &len) ? "read" : "refused",
			   "refused", "... with a blank");
	check_text(accord_mac_from_base64("AA=A", &len) ? "read" : "refused",
			   "refused", "... padded within");
	bytes = accord_mac_from_hex("00Fa9C", &len);
	check_text(bytes && len == 3 ? accord_mac_hex(bytes, len) : NULL, "00fa9c",
			   "hex");
	check_text(accord_mac_from_hex("00f", &len) ? "read" : "refused",
			   "refused", "... half of it");
	check_text(accord_mac_from_hex("0g", &len) ? "read" : "refused",
			   "refused", "... of another alphabet");
}

int
main(void)
{
	test_suite();
	test_manuals();
	test_standard();
	test_rule();
	test_text();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
