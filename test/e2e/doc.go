// Package e2e runs the real command against real servers: BIND, nginx, and clients that ask all the time. Its tests tell the main
// job from outside, as an operator would see it.
package e2e
