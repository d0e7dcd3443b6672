-- pg_accord: the install script, made from sql/NN_area.sql by `make`. Edit the parts.
\echo Use "CREATE EXTENSION pg_accord" to load this file. \quit

