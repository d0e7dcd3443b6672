#include "postgres.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "json.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(tt_clean);PG_FUNCTION_INFO_V1(tt_path);PG_FUNCTION_INFO_V1(tt_member);
Datum tt_clean(PG_FUNCTION_ARGS){bytea*b=PG_GETARG_BYTEA_PP(0);PG_RETURN_TEXT_P(cstring_to_text(accord_json_clean(VARDATA_ANY(b),VARSIZE_ANY_EXHDR(b),PG_GETARG_INT32(1))));}
Datum tt_path(PG_FUNCTION_ARGS){JsonbValue*v=accord_json_path(PG_GETARG_JSONB_P(0),text_to_cstring(PG_GETARG_TEXT_PP(1)));char*t;if(!v)PG_RETURN_TEXT_P(cstring_to_text("<none>"));t=accord_json_text(v);if(!t)PG_RETURN_NULL();PG_RETURN_TEXT_P(cstring_to_text(t));}
Datum tt_member(PG_FUNCTION_ARGS){char*t=accord_json_member(PG_GETARG_JSONB_P(0),text_to_cstring(PG_GETARG_TEXT_PP(1)));if(!t)PG_RETURN_NULL();PG_RETURN_TEXT_P(cstring_to_text(t));}
