// Certificates and kubeconfigs of upstream's side: one CA for clients and server alike, made new for each start.

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func template(name, organization string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	if organization != "" {
		t.Subject.Organization = []string{organization}
	}
	return t
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("oracle-ca", "")
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key, pemBlock("CERTIFICATE", der)}, nil
}

// issue signs a certificate that serves for a client and, on loopback, for a server; it returns certificate and key.
func (a *authority) issue(name, organization string) ([]byte, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := template(name, organization)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	t.IPAddresses, t.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pemBlock("CERTIFICATE", der), pemBlock("PRIVATE KEY", pkcs8), nil
}

// tokenKey makes the key pair that signs service accounts' tokens.
func tokenKey() (private, public []byte, err error) {
	// Of the sort that Isopod makes for itself: the discovery document names the algorithm.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	return pemBlock("EC PRIVATE KEY", sec1), pemBlock("PUBLIC KEY", pub), nil
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// writeKubeconfig writes one whose certificates are embedded, readable by the owner alone.
func writeKubeconfig(path, server string, ca, cert, key []byte) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: upstream
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: admin
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: upstream
  context: {cluster: upstream, user: admin}
current-context: upstream
`, server, b64(ca), b64(cert), b64(key))
	return os.WriteFile(path, []byte(text), 0o600)
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// kubeconfig is the part of the format that both sides' files use.
type kubeconfig struct {
	Clusters []struct {
		Cluster struct {
			Server string `json:"server"`
			CAData string `json:"certificate-authority-data"`
			CAFile string `json:"certificate-authority"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		User struct {
			CertData string `json:"client-certificate-data"`
			KeyData  string `json:"client-key-data"`
			CertFile string `json:"client-certificate"`
			KeyFile  string `json:"client-key"`
		} `json:"user"`
	} `json:"users"`
}

// access is how a server is reached: as its administrator, or anonymously without the client certificate.
type access struct {
	server    string
	admin     *tls.Config
	anonymous *tls.Config
}

func readKubeconfig(path string) (*access, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(text, &k); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(k.Clusters) == 0 || len(k.Users) == 0 {
		return nil, fmt.Errorf("%s names no cluster or no user", path)
	}
	cluster, user, dir := k.Clusters[0].Cluster, k.Users[0].User, filepath.Dir(path)
	ca, err := dataOrFile(cluster.CAData, cluster.CAFile, dir)
	if err != nil {
		return nil, err
	}
	cert, err := dataOrFile(user.CertData, user.CertFile, dir)
	if err != nil {
		return nil, err
	}
	key, err := dataOrFile(user.KeyData, user.KeyFile, dir)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &access{
		server:    cluster.Server,
		admin:     &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		anonymous: &tls.Config{RootCAs: roots},
	}, nil
}

func dataOrFile(data, file, dir string) ([]byte, error) {
	if data != "" {
		return base64.StdEncoding.DecodeString(data)
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	return os.ReadFile(file)
}
