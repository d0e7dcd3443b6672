/*
 * cppcheck.h: what cppcheck must know of PostgreSQL's macros to read our files: loops look like loops.
 */
#define PG_VERSION_NUM 150000
#define foreach(cell, list) for (cell = first(list); cell; cell = next(cell))
#define foreach_delete_current(list, cell) without(list, cell)
#define dlist_foreach(iter, head) for (start(&iter, head); iter.cur; step(&iter))
#define dlist_foreach_modify(iter, head) for (start(&iter, head); iter.cur; step(&iter))
#define dclist_foreach(iter, head) for (start(&iter, head); iter.cur; step(&iter))
#define slist_foreach(iter, head) for (start(&iter, head); iter.cur; step(&iter))
#define ereport(level, rest) do { if ((level) >= ERROR) abort(); } while (0)
#define PG_TRY(...) {
#define PG_CATCH(...) } {
#define PG_FINALLY(...) } {
#define PG_END_TRY(...) }
