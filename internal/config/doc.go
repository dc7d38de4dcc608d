// Package config turns text into one immutable Config, or into every error of the text at once.
//
// A rota.yaml (YAML 1.2, JSON or JSON with comments) and the files it includes are read within limits, become one tree of
// positioned values, are held against the grammar of the format, and are then read into values that need no further
// checking. A problem names file, line and column, shows the line, and says what to write instead. Nothing here starts,
// connects or listens; secrets are read and never shown.
//
// See DESIGN.md beside this file for the rules and the trade-offs.
package config
