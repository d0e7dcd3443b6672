/*
 * rowkey.h: exports of rowkey.c
 *
 * Layer 1: the key of a captured row, made of its key columns.
 */
#ifndef ACCORD_ROWKEY_H
#define ACCORD_ROWKEY_H

/*
 * The key of n parts, palloc'd: a single part is its own key (NULL when it is
 * NULL); more are joined by commas, with a backslash before each comma and
 * backslash in them, and \N for NULL. What is longer than a key may be is
 * replaced by "sha256:" and its digest.
 */
extern char *accord_rowkey_make(int n, char **parts);

#endif							/* ACCORD_ROWKEY_H */
