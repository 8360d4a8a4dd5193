/*
 * fake_wire: a record of what clients ask, so that tests see what the module put on
 * the wire.  It stands before the real decoder (ld --wrap) and changes nothing.
 */
#ifndef GLM_FAKE_WIRE_H
#define GLM_FAKE_WIRE_H

/* Each SUBMIT becomes one JSON object a line of this file.  Before the server
 * starts. */
void fake_wire_record(const char *path);

#endif
