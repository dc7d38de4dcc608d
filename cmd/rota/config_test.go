package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rota-dns/rota/internal/config"
)

func TestLogProblems(t *testing.T) {
	var out bytes.Buffer
	log, _, err := newLogger(slog.LevelInfo, "json", "", &out)
	if err != nil {
		t.Fatal(err)
	}
	_, wrong := config.Parse("rota.yaml", []byte("node: {nam: x}\nlog: {level: lout}\nkeys: {k: {secret: hush-hush-hush}}\n"), config.Options{})
	logProblems(log, "refused", fmt.Errorf("reload: %w", wrong), "because", "SIGHUP")
	logProblems(log, "refused", &config.Errors{Problems: []config.Problem{{File: "a", Message: "is empty"}}, More: 3})
	logProblems(log, "refused", errors.New("no quorum"), "because", "SIGHUP")
	var got []map[string]any
	for line := range strings.Lines(out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		delete(m, "time")
		got = append(got, m)
	}
	record := func(kv ...any) map[string]any {
		m := map[string]any{"level": "ERROR", "msg": "refused"}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return m
	}
	want := []map[string]any{
		record("because", "SIGHUP", "file", "rota.yaml", "line", 1.0, "column", 8.0, "message", `unknown key "nam" in node`, "hint", `did you mean "name"?`),
		record("because", "SIGHUP", "file", "rota.yaml", "line", 2.0, "column", 14.0, "message", `log: level "lout": want debug, info, warn or error`),
		record("because", "SIGHUP", "file", "rota.yaml", "line", 3.0, "column", 8.0, "message", `the secret of key "k" is not base64`),
		record("file", "a", "message", "is empty"),
		record("more", 3.0),
		record("because", "SIGHUP", "error", "no quorum"),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
