package config

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// shared is a tree that changes while it is watched.
type shared struct {
	sync.Mutex
	tree
}

func (s *shared) read(name string, limit int) ([]byte, fs.FileMode, error) {
	s.Lock()
	defer s.Unlock()
	return s.tree.read(name, limit)
}

func (s *shared) glob(pattern string) ([]string, error) {
	s.Lock()
	defer s.Unlock()
	return s.tree.glob(pattern)
}

func (s *shared) put(name, text string) {
	s.Lock()
	defer s.Unlock()
	s.tree[name] = text
}

func (s *shared) remove(name string) {
	s.Lock()
	defer s.Unlock()
	delete(s.tree, name)
}

func TestWatch(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		const main = "/etc/rota/rota.yaml"
		files := &shared{tree: tree{main: "include: [conf.d/*.yaml]\nkeys: {k: {file: k.key}}\n", "/etc/rota/k.key": bindKey}}
		o := options(nil)
		o.filesystem = files
		var inForce *Config
		load := func() bool {
			c, err := Load(main, o)
			if err == nil {
				inForce = c
			}
			return err == nil
		}
		if !load() {
			t.Fatal("does not load")
		}
		ctx, cancel := context.WithCancel(t.Context())
		calls, reload := 0, true
		done := make(chan error, 1)
		go func() {
			done <- watch(ctx, time.Second, files, func() Sources { return inForce.Sources }, func() {
				calls++
				if reload {
					load()
				}
			})
		}()
		step := func(what string, want int, change func()) {
			t.Helper()
			change()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if calls != want {
				t.Fatalf("%s: %d calls, want %d", what, calls, want)
			}
		}
		step("nothing", 0, func() {})
		step("the same again", 0, func() { files.put(main, files.tree[main]) })
		step("a new include", 1, func() { files.put("/etc/rota/conf.d/a.yaml", "log: {level: warn}\n") })
		step("a secret", 2, func() { files.put("/etc/rota/k.key", "key a { algorithm hmac-sha256; secret \""+secret64+"\"; };") })
		step("a broken file, once", 3, func() { files.put(main, "nod: {}") })
		step("still broken, otherwise", 4, func() { files.put(main, "nod: {x: 1}") })
		step("gone", 5, func() { files.remove(main) })
		step("right again", 6, func() { files.put(main, "include: [conf.d/*.yaml]\nlog: {format: json}\n") })
		if inForce.Log.Format != LogJSON {
			t.Error("not reloaded")
		}
		step("an include that leaves", 7, func() { files.remove("/etc/rota/conf.d/a.yaml") })
		reload = false
		step("back to what is in force before it was told", 7, func() {
			was := files.tree[main]
			files.put(main, "log: {level: debug}")
			time.Sleep(1500 * time.Millisecond)
			files.put(main, was)
		})
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
