// The two servers under comparison: upstream's etcd and kube-apiserver, and `isopod server`. Each lives in a directory
// of its own under one temporary directory, listens on loopback only, and is killed by the kernel when this process
// ends in whatever way; close waits for them and removes the directory.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	serviceCIDR  = "10.43.0.0/16"
	startTimeout = 120 * time.Second
	stopTimeout  = 20 * time.Second
)

// process is one program with its log in a file.
type process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// start runs a program. Its parent-death signal follows the thread that calls, so main locks itself to its thread.
func start(dir, name, path string, args ...string) (*process, error) {
	log := filepath.Join(dir, name+".log")
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = file, file, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{cmd, log, make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

func (p *process) tail() string {
	text, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// server is a running side of the comparison.
type server struct {
	name string
	// controllers says that some run inside the server and write behind the client's back.
	controllers bool
	processes   []*process
	*access
}

func (s *server) stop() {
	for i := len(s.processes) - 1; i >= 0; i-- {
		s.processes[i].stop()
	}
}

// ready waits until the side answers /readyz, or one of its programs has ended.
func (s *server) ready(ctx context.Context) error {
	client := newClient(s.access)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("no answer yet")
	for {
		req, _ := http.NewRequestWithContext(ctx, "GET", s.server+"/readyz", nil)
		resp, err := client.admin.Do(req)
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = fmt.Errorf("%s: %s", resp.Status, body)
		} else if ctx.Err() == nil {
			last = err
		}
		for _, p := range s.processes {
			select {
			case <-p.exited:
				return fmt.Errorf("%s ended early:\n%s", filepath.Base(p.cmd.Path), p.tail())
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", s.name, last, s.processes[len(s.processes)-1].tail())
		case <-tick.C:
		}
	}
}

// freePorts holds all listeners until the last port is known, so that no two are the same.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// upstreamFiles writes the certificates that kube-apiserver is started with.
func upstreamFiles(dir, url string) error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": ca.pem}
	if files["server.crt"], files["server.key"], err = ca.issue("kube-apiserver", ""); err != nil {
		return err
	}
	if files["sa.key"], files["sa.pub"], err = tokenKey(); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	if err := writeAuthorization(dir); err != nil {
		return err
	}
	cert, key, err := ca.issue("system:admin", "system:masters")
	if err != nil {
		return err
	}
	return writeKubeconfig(filepath.Join(dir, "kubeconfig"), url, ca.pem, cert, key)
}

// isopodFiles writes what Isopod is given as upstream is.
func isopodFiles(dir string) error {
	key, public, err := tokenKey()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"sa.key": key, "sa.pub": public} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return writeAuthorization(dir)
}

// startUpstream runs etcd and kube-apiserver from the directory `programs`. With durable unset etcd does not wait for
// the disk: what a comparison writes is thrown away anyway.
func startUpstream(dir, programs string, durable bool) (*server, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("https://127.0.0.1:%d", ports[2])
	if err := upstreamFiles(dir, url); err != nil {
		return nil, err
	}
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	peer := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	args := []string{
		"--name=oracle", "--data-dir=" + filepath.Join(dir, "etcd"), "--log-level=warn",
		"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=oracle=" + peer,
	}
	if !durable {
		args = append(args, "--unsafe-no-fsync")
	}
	s := &server{name: "upstream"}
	p, err := start(dir, "etcd", filepath.Join(programs, "etcd"), args...)
	if err != nil {
		return nil, err
	}
	s.processes = append(s.processes, p)
	file := func(name string) string { return filepath.Join(dir, name) }
	p, err = start(dir, "kube-apiserver", filepath.Join(programs, "kube-apiserver"),
		"--etcd-servers="+etcd, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[2]),
		"--advertise-address=192.0.2.10", "--cert-dir="+dir,
		"--tls-cert-file="+file("server.crt"), "--tls-private-key-file="+file("server.key"),
		"--client-ca-file="+file("ca.crt"), "--authorization-config="+file("authorization.yaml"), "--allow-privileged=true",
		"--enable-admission-plugins=NodeRestriction",
		"--requestheader-client-ca-file="+file("ca.crt"), "--requestheader-allowed-names=system:auth-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-uid-headers=X-Remote-Uid",
		"--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--service-cluster-ip-range="+serviceCIDR, "--service-node-port-range=30000-32767",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+file("sa.pub"), "--service-account-signing-key-file="+file("sa.key"),
	)
	if err != nil {
		s.stop()
		return nil, err
	}
	s.processes = append(s.processes, p)
	if s.access, err = readKubeconfig(file("kubeconfig")); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// startIsopod runs the server without its node, and without controllers and scheduler where it can do without: what
// they write would race with what is compared.
func startIsopod(dir, program string) (*server, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, empty := range []string{"config.yaml", "registries.yaml", "resolv.conf"} {
		if err := os.WriteFile(file(empty), nil, 0o600); err != nil {
			return nil, err
		}
	}
	if err := isopodFiles(dir); err != nil {
		return nil, err
	}
	help, err := exec.Command(program, "server", "--help").Output()
	if err != nil {
		return nil, fmt.Errorf("%s server --help: %w", program, err)
	}
	args := []string{
		"server", "--disable-agent", "--bind-address=127.0.0.1", fmt.Sprintf("--https-listen-port=%d", ports[0]),
		"--advertise-address=192.0.2.10", "--service-cidr=" + serviceCIDR, "--data-dir=" + file("data"), "--config=" + file("config.yaml"),
		"--write-kubeconfig=" + file("kubeconfig"), "--private-registry=" + file("registries.yaml"),
		"--resolv-conf=" + file("resolv.conf"), "--node-name=oracle", "--authorization-config=" + file("authorization.yaml"),
		"--service-account-key-file=" + file("sa.pub"), "--service-account-signing-key-file=" + file("sa.key"),
	}
	s := &server{name: "isopod"}
	for _, flag := range []string{"--disable-controller-manager", "--disable-scheduler"} {
		if strings.Contains(string(help), flag) {
			args = append(args, flag)
		} else {
			s.controllers = true
		}
	}
	p, err := start(dir, "isopod", program, args...)
	if err != nil {
		return nil, err
	}
	s.processes = append(s.processes, p)
	deadline := time.Now().Add(startTimeout)
	for {
		if s.access, err = readKubeconfig(file("kubeconfig")); err == nil {
			break
		}
		select {
		case <-p.exited:
			return nil, fmt.Errorf("isopod ended early:\n%s", p.tail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, fmt.Errorf("isopod wrote no kubeconfig: %w\n%s", err, p.tail())
		}
	}
	s.server = fmt.Sprintf("https://127.0.0.1:%d", ports[0])
	return s, nil
}

// pair is both sides, and the directory that they live in.
type pair struct {
	dir              string
	upstream, isopod *server
}

func startPair(ctx context.Context, programs, isopod string) (*pair, error) {
	dir, err := os.MkdirTemp("", "isopod-oracle-")
	if err != nil {
		return nil, err
	}
	p := &pair{dir: dir}
	if err := p.start(programs, isopod); err != nil {
		p.close()
		return nil, err
	}
	for _, s := range []*server{p.upstream, p.isopod} {
		if err := s.ready(ctx); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (p *pair) start(programs, isopod string) error {
	for _, d := range []string{"upstream", "isopod"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o700); err != nil {
			return err
		}
	}
	var err error
	if p.upstream, err = startUpstream(filepath.Join(p.dir, "upstream"), programs, false); err != nil {
		return err
	}
	if isopod == "upstream" {
		p.isopod, err = startUpstream(filepath.Join(p.dir, "isopod"), programs, false)
	} else {
		p.isopod, err = startIsopod(filepath.Join(p.dir, "isopod"), isopod)
	}
	return err
}

func (p *pair) close() {
	for _, s := range []*server{p.upstream, p.isopod} {
		if s != nil {
			s.stop()
		}
	}
	_ = os.RemoveAll(p.dir)
}
