/*
 * partition.c: the managed table that a table at hand is a partition of.
 *
 * Runs in the application's backends. Triggers of a partitioned table are
 * fired for its partitions, which may have their columns in another order.
 * Which table it is, and where its columns are, is found out once per session
 * and partition, and again after the relation cache said that either of them,
 * or accord.managed, changed: attaching and detaching say so of the partition.
 *
 * On failure the statement raises; what was being found out is found out anew.
 */
#include "postgres.h"

#include "access/attmap.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "accord.h"
#include "compat.h"
#include "db.h"
#include "invalidation.h"
#include "partition.h"

typedef struct Partition
{
	Oid			relid;			/* hash key */
	bool		known;			/* what follows is, unless it is stale */
	bool		stale;
	Oid			root;			/* the managed table; or InvalidOid */
	MemoryContext context;		/* holds what follows */
	AttrNumber *columns;		/* by its columns; NULL: laid out alike */
} Partition;

static HTAB *partitions = NULL;
static Oid	managed_oid;		/* accord.managed */

/* Relation cache callback. */
static void
mark_stale(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	Partition  *partition;
	bool		all = !OidIsValid(relid) || relid == managed_oid;

	hash_seq_init(&scan, partitions);
	while ((partition = hash_seq_search(&scan)) != NULL)
		if (all || partition->relid == relid || partition->root == relid)
			partition->stale = true;
}

static void
create_cache(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Partition);
	ctl.hcxt = TopMemoryContext;
	partitions = hash_create("pg_accord partitions", 64, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	accord_invalidation_heed(mark_stale, (Datum) 0);
}

/* The nearest table above that is managed. */
static Oid
find_root(Oid relid)
{
	List	   *ancestors = get_partition_ancestors(relid);
	ListCell   *lc;

	foreach(lc, ancestors)
		if (accord_policy_find(lfirst_oid(lc)) != NULL)
		return lfirst_oid(lc);
	return InvalidOid;
}

/* Where the root's columns are in the partition, in the entry's memory. */
static AttrNumber *
map_columns(Relation rel, Oid root, MemoryContext context)
{
	Relation	parent = table_open(root, AccessShareLock);
	AttrMap    *map = accord_attrmap(RelationGetDescr(rel),
									 RelationGetDescr(parent));
	AttrNumber *columns = NULL;

	table_close(parent, NoLock);
	if (map == NULL)
		return NULL;
	columns = MemoryContextAlloc(context, map->maplen * sizeof(AttrNumber));
	memcpy(columns, map->attnums, map->maplen * sizeof(AttrNumber));
	free_attrmap(map);
	return columns;
}

static Partition *
find_entry(Oid relid)
{
	Partition  *partition;
	bool		found;

	if (partitions == NULL)
		create_cache();
	partition = hash_search(partitions, &relid, HASH_ENTER, &found);
	if (!found)
	{
		partition->known = false;
		partition->root = InvalidOid;
		partition->context = NULL;
	}
	return partition;
}

/* What was known may be in use: it goes with the transaction. */
static void
retire(Partition *partition)
{
	if (partition->context != NULL)
		MemoryContextSetParent(partition->context, TopTransactionContext);
	partition->context = NULL;
	partition->columns = NULL;
	partition->known = false;
}

static void
find_out(Partition *partition, Relation rel)
{
	MemoryContext context;

	managed_oid = accord_db_relid("managed");
	retire(partition);
	partition->stale = false;	/* may be set again meanwhile */
	partition->root = find_root(partition->relid);
	context = AllocSetContextCreate(CurrentMemoryContext,
									"pg_accord partition",
									ALLOCSET_SMALL_SIZES);
	if (OidIsValid(partition->root))
		partition->columns = map_columns(rel, partition->root, context);
	MemoryContextSetParent(context, CacheMemoryContext);
	partition->context = context;
	partition->known = true;
}

AccordManaged *
accord_partition_managed(Relation rel, const AttrNumber **columns)
{
	AccordManaged *managed;
	Partition  *partition;

	*columns = NULL;
	managed = accord_policy_find(RelationGetRelid(rel));
	if (managed != NULL || !rel->rd_rel->relispartition)
		return managed;
	partition = find_entry(RelationGetRelid(rel));
	if (!partition->known || partition->stale)
		find_out(partition, rel);
	*columns = partition->columns;
	return OidIsValid(partition->root) ? accord_policy_find(partition->root) :
		NULL;
}

Oid
accord_partition_root(Oid relid)
{
	return get_rel_relispartition(relid) ? find_root(relid) : InvalidOid;
}
