-- Who was erased before it was done in full is let go once more: their own data is still there.

UPDATE accounts SET departing = true WHERE erased;
