/*
 * link_check.c: how a channel is reached is checked when it is given: the
 * columns tls (certificates, by their names in accord.secret) and proxy.
 *
 * Runs in whatever backend edits a channel or an account.
 *
 * Invariants: no file is named by a channel, so that whoever may configure
 * one cannot have the server read its own; what is trusted or shown is a
 * secret, or what the server's settings say.
 *
 * On failure the statement raises, with a hint.
 */
#include "postgres.h"

#include "auth_check.h"
#include "http.h"
#include "json.h"
#include "link_check.h"

/* Members, each the name of a secret or another string. */
typedef struct LinkMember
{
	const char *name;
	bool		secret;
} LinkMember;

static const LinkMember tls_members[] = {
	{"certificate", true}, {"key", true}, {"ca", true}
};

static const LinkMember proxy_members[] = {
	{"url", false}, {"user", false}, {"secret", true}
};

static void
check_members(const char *table, const char *column, Jsonb *json,
			  const LinkMember *members, int n, const char *hint)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of %s is not an object", column, table),
				 errhint("%s", hint)));
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		char	   *name;
		char	   *text;
		bool		known = false;

		if (token != WJB_KEY)
			continue;
		name = accord_json_text(&value);
		text = accord_json_member(json, name);
		for (int i = 0; i < n; i++)
		{
			if (strcmp(members[i].name, name) != 0)
				continue;
			known = true;
			if (text != NULL && text[0] != '\0' && members[i].secret)
				accord_auth_check_stored(text);
		}
		if (!known || text == NULL || text[0] == '\0' ||
			accord_auth_has_control(text))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 known ? errmsg("\"%s\" in %s of %s is not a line of text",
									name, column, table) :
					 errmsg("%s of %s has an option \"%s\", which is not known",
							column, table, name),
					 errhint("%s", hint)));
	}
}

void
accord_link_check_tls(const char *table, Jsonb *tls)
{
	static const char hint[] =
	"Give certificate (with its key), key and ca: each the name of a row "
	"of accord.secret that holds PEM.";

	check_members(table, "tls", tls, tls_members, lengthof(tls_members), hint);
	if (accord_json_path(tls, "key") != NULL &&
		accord_json_path(tls, "certificate") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("tls of %s has a key without a certificate", table),
				 errhint("%s", hint)));
}

void
accord_link_check_proxy(const char *table, Jsonb *proxy)
{
	static const char hint[] =
	"Give url, such as \"http://proxy.example.com:3128\", and perhaps user "
	"and secret, the name of a row of accord.secret.";
	char	   *url;
	char	   *user;
	const char *fault;

	check_members(table, "proxy", proxy, proxy_members,
				  lengthof(proxy_members), hint);
	url = accord_json_member(proxy, "url");
	if (url == NULL || !accord_http_proxy_valid(url))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("url \"%s\" in proxy of %s cannot be used",
						url ? url : "", table),
				 errhint("Write scheme, host and port: http, https, socks4a or "
						 "socks5h, by which the proxy resolves names.")));
	if ((accord_json_path(proxy, "user") == NULL) !=
		(accord_json_path(proxy, "secret") == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("proxy of %s has one of user and secret, not both",
						table),
				 errhint("%s", hint)));
	user = accord_json_member(proxy, "user");
	fault = user ? accord_http_proxy_user_fault(url, user) : NULL;
	if (fault != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("user of proxy of %s cannot be used: %s", table,
						fault),
				 errhint("Users and secrets go to proxies by http, https and "
						 "socks5h; at most 255 bytes by the last.")));
	if (!accord_http_proxy_allowed(url))
		ereport(WARNING,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("proxy \"%s\" of %s is not allowed", url, table),
				 errhint("Which networks are called through it is its to say: "
						 "to trust it with that, add it to "
						 "accord.allowed_proxies.")));
}
