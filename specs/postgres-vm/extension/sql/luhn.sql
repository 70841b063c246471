CREATE EXTENSION luhn;
SELECT luhn_valid('79927398713');
-- every other check digit is wrong
SELECT count(*) FROM generate_series(0, 9) digit WHERE luhn_valid('7992739871' || digit);
SELECT luhn_valid('4111111111111111') AS card, luhn_valid('490154203237518') AS imei;
-- a doubled 9 counts as 9
SELECT luhn_valid('91') AS one, luhn_valid('90') AS none;
SELECT luhn_valid(''), luhn_valid('0'), luhn_valid('00'), luhn_valid('7992 7398 713'), luhn_valid(NULL);
SELECT luhn_valid(repeat('0', 100000));
CREATE TABLE cards (number text CHECK (luhn_valid(number)));
INSERT INTO cards VALUES ('79927398713');
INSERT INTO cards VALUES ('79927398710');
