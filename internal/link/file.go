package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxFile bounds every file that is read here: a certificate is a few kilobytes.
const maxFile = 1 << 20

func readFile(path string) ([]byte, error) {
	b, _, err := readMode(path)
	return b, err
}

// readKey reads a private key's file, which only its owner may read.
func readKey(path string) ([]byte, error) {
	b, mode, err := readMode(path)
	if err != nil {
		return nil, err
	}
	if mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: its mode is %04o, so others than its owner may read the key: chmod 600 %s, and if they were not meant to, make a new key",
			path, mode.Perm(), path)
	}
	return b, nil
}

func readMode(path string) ([]byte, os.FileMode, error) {
	info, err := os.Stat(path) // before it is opened: opening a pipe could wait for ever
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, 0, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return b, info.Mode(), err
}

// writeFile puts a file in place whole or not at all, with its mode from the first moment.
func writeFile(path string, b []byte, mode os.FileMode) error {
	if old, err := readFile(path); err == nil && bytes.Equal(old, b) {
		return os.Chmod(path, mode)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
