// Package clock keeps the time by which decisions are made: when an override ends, whether a report is too old, how long a lease runs.
//
// A machine's wall clock can be set: by a person, by a time server that is wrong, by a hypervisor. Whatever it does, this time goes on at the
// pace of the monotonic clock, and never back. It begins with the wall clock's when the process starts and follows small corrections
// slowly; a wall clock that leaps is not followed until the process starts anew, and Look says so.
package clock
