# pg_accord
#
# For users:       make && make install          (PG_CONFIG=... picks the PostgreSQL)
# For developers:  make test       everything, in a private copy; nothing on the machine is touched
#                  make test-majors   the same on 17, 18 and 19, in systems that debootstrap makes (root; 5 GB)
#                  make mutants    whether the tests notice mistakes that are made on purpose
#                  make lint       the house rules
#                  make indent     formats src/ (make check-format only looks)
#                  make bench      the measurements
#                  make reference  docs/reference.md, from the catalogue
#                  make chaos      minutes of everything that goes wrong, and an account of every event (root)
#                  make analyze    clang's and cppcheck's analysis of src/; some minutes
#                  make soak       an hour of load, and whether anything grows (SOAK=seconds)
#                  make demo       the demonstration
#                  make dist       what PGXN takes
# The install script is made of the parts in sql/, in the order of their numbers.

all:

EXTENSION = pg_accord
MODULE_big = pg_accord
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA_built = pg_accord--1.0.sql
DATA = $(wildcard sql/upgrade/pg_accord--*--*.sql)

CURL_CFLAGS := $(shell pkg-config --cflags libcurl 2>/dev/null || curl-config --cflags 2>/dev/null)
CURL_LIBS := $(shell pkg-config --libs libcurl 2>/dev/null || curl-config --libs 2>/dev/null)
CRYPTO_LIBS := $(shell pkg-config --libs libcrypto 2>/dev/null || echo -lcrypto)
ZLIB_LIBS := $(shell pkg-config --libs zlib 2>/dev/null || echo -lz)

# iCalendar feeds: a library of its own, loaded when the first one is read. WITH_ICAL=no leaves it out, =yes insists on it.
WITH_ICAL ?= $(shell pkg-config --exists libical 2>/dev/null && echo yes || echo no)
ICAL_MODULE := $(if $(filter yes,$(WITH_ICAL)),pg_accord_ical.so)
EXTRA_CLEAN = pg_accord_ical.so

PG_CPPFLAGS = $(CURL_CFLAGS)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare
# PostgreSQL 15 loads libraries RTLD_GLOBAL: without this a function of ours that is named like one of the server's is
# replaced by it, inside our own library.
SHLIB_LINK = $(CURL_LIBS) $(CRYPTO_LIBS) $(ZLIB_LIBS) -Wl,-Bsymbolic-functions

# These need a running server with shared_preload_libraries = 'pg_accord' and accord.dispatch = off; test/run makes one.
REGRESS := $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test
ISOLATION := $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test --outputdir=.
PROVE_TESTS := $(sort $(wildcard test/t/*.pl))
PROVE_FLAGS = -I test/lib
TAP_TESTS := $(if $(PROVE_TESTS),1)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
# `make test` installs what is missing; everything else needs it now.
all install installcheck:
	@echo 'PostgreSQL server development files are missing (Debian: postgresql-server-dev-15)' >&2; exit 1
endif

$(OBJS): $(wildcard src/*.h) Makefile

all: $(ICAL_MODULE)

pg_accord_ical.so: src/ical/pg_accord_ical.c src/ical.h Makefile
	$(CC) $(filter-out -I./src,$(CPPFLAGS)) $(CFLAGS) $(CFLAGS_SL) -shared -Wl,-Bsymbolic-functions -o $@ $< \
		$(shell pkg-config --cflags --libs libical)

install: $(if $(ICAL_MODULE),install-ical)
uninstall: uninstall-ical

install-ical: $(ICAL_MODULE)
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)'
	$(INSTALL_SHLIB) $(ICAL_MODULE) '$(DESTDIR)$(pkglibdir)/'

uninstall-ical:
	rm -f '$(DESTDIR)$(pkglibdir)/pg_accord_ical.so'

pg_accord--1.0.sql: $(sort $(wildcard sql/[0-9]*.sql))
	cat $^ > $@

test:
	test/run

test-majors:
	test/majors

mutants:
	test/run mutants

# What PGXN takes: the tree as it was committed, with the install script, which is built.
DIST := pg_accord-$(shell sed -nE 's/^ *"version": *"([^"]+)".*/\1/p' META.json | head -n 1)
dist: pg_accord--1.0.sql
	rm -rf $(DIST) $(DIST).zip
	git archive --prefix=$(DIST)/ HEAD | tar -xf -
	cp $< $(DIST)/
	python3 -m zipfile -c $(DIST).zip $(DIST)
	rm -rf $(DIST)

demo:
	examples/demo/run

bench:
	test/bench/run

chaos:
	test/chaos/run

soak:
	test/soak/run

analyze:
	test/analyze/run

reference:
	test/run reference

lint: all
	test/lint/run

indent:
	test/indent

check-format:
	test/indent --check

.PHONY: install-ical uninstall-ical all dist test test-majors mutants demo bench reference chaos soak analyze lint indent check-format
