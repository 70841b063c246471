\echo Use "CREATE EXTENSION luhn" to load this file. \quit

CREATE FUNCTION luhn_valid(number text) RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
