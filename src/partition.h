/*
 * partition.h: exports of partition.c
 *
 * Layer 3: the managed table that a table at hand is, or is a partition of.
 */
#ifndef ACCORD_PARTITION_H
#define ACCORD_PARTITION_H

#include "access/attnum.h"
#include "policy.h"
#include "utils/rel.h"

/*
 * NULL: there is none. columns: for each column of the managed table its
 * number in the table at hand, 0 where it was dropped; NULL where they are
 * laid out alike. Both stay as they are until the transaction ends.
 */
extern AccordManaged *accord_partition_managed(Relation rel,
											   const AttrNumber **columns);

/* The managed table that the partition belongs to; InvalidOid: to none. */
extern Oid	accord_partition_root(Oid relid);

#endif							/* ACCORD_PARTITION_H */
